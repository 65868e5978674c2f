"""The version of smh: its only source."""

__version__ = "0.1.0"
