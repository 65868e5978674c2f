"""The version of smh: its only source."""

__version__ = "2.0.0.dev0"
