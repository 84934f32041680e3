"""Runs graphs of picklable callables anywhere: in this process, in local processes, on SLURM."""

from slurm.calls import Call, register
from slurm.errors import RequestError, RunError, SlurmError
from slurm.executor import Event, Executor, GraphResult, Outcome, run_graph
from slurm.graph import Graph
from slurm.inline import InlineExecutor
from slurm.ledger import Ledger
from slurm.resources import Resources
from slurm.stage import Output, Stage

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
    "SlurmError",
    "Stage",
    "register",
    "run_graph",
]
