"""The two ways in which running a graph of stages goes wrong."""


class SlurmError(Exception):
    """Base of this package's errors; each message stands alone, without a traceback."""


class RequestError(SlurmError):
    """What was asked cannot be run: a bad graph, a missing input, an unwritable run directory."""


class RunError(SlurmError):
    """What was asked is right, but running it failed: the scheduler refused, another submitter is at work."""
