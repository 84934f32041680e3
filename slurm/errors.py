"""The two ways in which running a graph of stages goes wrong; both are errors of the whole product."""

from carryover.configs.errors import UserError, WorkError


class RequestError(UserError):
    """Invalid request: a bad graph, a missing input, an unwritable run directory."""


class RunError(WorkError):
    """Valid request that failed: the scheduler rejected it, or another submitter is active."""
