"""Experiments train with PyTorch: without it there is nothing of theirs to collect."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("torch") else ["test_experiments*.py"]
