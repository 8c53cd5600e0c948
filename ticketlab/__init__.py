"""Lottery tickets from a YAML recipe: find them, measure them, keep them."""

__version__ = "0.1.0"
