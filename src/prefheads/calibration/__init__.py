"""Choosing how to steer on held-out users, and validating the choice on others."""
