"""The two ways in which carryover says no."""


class CarryoverError(Exception):
    """Base of every error that is meant for the user; its message stands alone, without a traceback."""


class UserError(CarryoverError):
    """What was asked is wrong: a bad key, a missing file, unusable data (exit status 2)."""


class WorkError(CarryoverError):
    """What was asked is right, but the work failed: NaN, a proof that does not hold (exit status 1)."""
