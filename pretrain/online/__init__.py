"""Signals of what features are worth, taken while a network is trained."""
