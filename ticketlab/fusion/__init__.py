"""Arithmetic on networks: fewer units that compute the same, or nearly the same. No files, no printing."""
