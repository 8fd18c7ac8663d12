"""What the report measures in the model."""
