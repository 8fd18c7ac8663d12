"""The self-test of a user's own model."""
