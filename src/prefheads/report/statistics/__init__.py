"""What scores and results say, with their controls; needs no model."""
