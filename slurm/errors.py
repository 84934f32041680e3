"""The two ways in which running a graph of stages goes wrong; both are errors of the whole product."""

from carryover.configs.errors import UserError, WorkError


class RequestError(UserError):
    """What was asked cannot be run: a bad graph, a missing input, an unwritable run directory."""


class RunError(WorkError):
    """What was asked is right, but running it failed: the scheduler refused, another submitter is at work."""
