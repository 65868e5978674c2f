"""Checkpoints and plain safetensors files: written atomically, read as untrusted input."""
