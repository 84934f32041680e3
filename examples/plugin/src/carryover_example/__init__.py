"""One task and one pretraining method for carryover."""
