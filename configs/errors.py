"""The two ways in which carryover says no, and what can be wrong with a file of its own."""


class CarryoverError(Exception):
    """Base of every error that is meant for the user; its message stands alone, without a traceback."""


class UserError(CarryoverError):
    """Invalid input: a bad key, a missing file, unusable data (exit status 2)."""


class WorkError(CarryoverError):
    """Valid input, but the work failed: NaN, a failed verification (exit status 1)."""


class DamagedFileError(UserError):
    """A file that carryover wrote is not as written: cut off, edited, or overwritten."""


class NewerFormatError(UserError):
    """A file was written by a release whose format this one does not know."""
