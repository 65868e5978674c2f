"""Checkpoints and plain safetensors files: written whole, read without trust."""
