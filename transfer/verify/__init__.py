"""Whether a checkpoint is what it claims to be: measured, and the likely cause named where it is not."""
