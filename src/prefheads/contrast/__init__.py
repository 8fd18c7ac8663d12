"""Two opinions about the next token, and how to combine them."""

from prefheads.contrast.combine import combine, entropy_strength

__all__ = ["combine", "entropy_strength"]
