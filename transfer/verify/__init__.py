"""Verification of checkpoints: measure each reading, and name the likely cause of a mismatch."""
