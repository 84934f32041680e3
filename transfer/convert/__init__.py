"""Canonical checkpoints -> the libraries that the field judges by, each with its proof of carriage."""

from carryover.transfer.convert.conversion import convert
from carryover.transfer.convert.targets import TARGETS

__all__ = ["TARGETS", "convert"]
