"""carryover study: the papers' experiments that need no training run."""
