"""Steering a model with heads (sections 4 and 5.3), and the baselines CAD and DoLa."""
