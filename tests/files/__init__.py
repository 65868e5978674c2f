"""Tests of files: checkpoints, plain files, and what strangers may put into them."""
