"""Amplified heads as weights that other programs load."""
