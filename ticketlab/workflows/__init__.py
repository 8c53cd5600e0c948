"""Experiments end to end: what happens in which order."""
