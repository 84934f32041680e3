"""Canonical checkpoints -> the libraries that the field judges by, each with its proof of carriage."""

from collections.abc import Mapping

from carryover.transfer.convert.conversion import TARGETS, convert

# Importing into canonical form is a command of its own; these are the libraries.
SUFFIXES: Mapping[str, str] = {n: t.suffixes[0] for n, t in TARGETS.items() if n != "canonical"}

__all__ = ["SUFFIXES", "TARGETS", "convert"]
