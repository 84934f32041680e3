"""Convert canonical checkpoints for the libraries that the field uses, and verify every conversion."""

from carryover.transfer.convert.conversion import convert
from carryover.transfer.convert.targets import TARGETS

__all__ = ["TARGETS", "convert"]
