"""How the report draws."""
