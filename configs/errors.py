"""The two ways in which carryover says no, and what can be wrong with a file of its own."""


class CarryoverError(Exception):
    """Base of every error that is meant for the user; its message stands alone, without a traceback."""


class UserError(CarryoverError):
    """What was asked is wrong: a bad key, a missing file, unusable data (exit status 2)."""


class WorkError(CarryoverError):
    """What was asked is right, but the work failed: NaN, a proof that does not hold (exit status 1)."""


class DamagedFileError(UserError):
    """A file that carryover wrote is not as written: cut off, edited, or overwritten."""


class NewerFormatError(UserError):
    """A file was written by a release whose format this one does not know."""
