"""Runs the model: one thread owns it, and jobs share it in slices."""
