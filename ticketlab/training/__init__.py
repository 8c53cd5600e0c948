"""Optimizer steps under a mask. Knows a model, batches and an optimizer; not levels, recipes' files or runs."""
