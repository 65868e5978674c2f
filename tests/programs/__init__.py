"""Tests of the programs around the library."""
