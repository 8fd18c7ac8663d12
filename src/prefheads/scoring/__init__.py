"""Likelihood of responses (Eq. 3)."""
