"""Examples: what a user wrote, read from files and turned into tokens."""
