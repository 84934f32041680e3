"""The papers' experiments that need no training run: each computes a table or a figure from a seed."""
