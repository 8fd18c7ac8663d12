"""Scores of attention heads, and the weights of heads that are chosen by them."""
