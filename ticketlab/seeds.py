"""One recipe seed → independent, repeatable seeds for each purpose."""

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, such as `("order", epoch)`; the same wherever it is computed."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
