"""Data sets as resident tensors: where they are found, how they are split, how batches are made."""
