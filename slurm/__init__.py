"""Runs graphs of picklable callables anywhere: in this process, in local processes, on SLURM."""

from carryover.slurm.calls import Call, register
from carryover.slurm.errors import RequestError, RunError
from carryover.slurm.executor import Event, Executor, GraphResult, InlineExecutor, Outcome, run_graph
from carryover.slurm.graph import Graph
from carryover.slurm.ledger import Ledger
from carryover.slurm.resources import Resources
from carryover.slurm.stage import Output, Stage

__all__ = [
    "Call",
    "Event",
    "Executor",
    "Graph",
    "GraphResult",
    "InlineExecutor",
    "Ledger",
    "Outcome",
    "Output",
    "RequestError",
    "Resources",
    "RunError",
    "Stage",
    "register",
    "run_graph",
]
