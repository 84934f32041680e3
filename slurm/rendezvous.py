"""How the processes of one job find one another: torch.distributed's standard environment variables."""

import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carryover.configs.formats import Format
from carryover.slurm.errors import RunError

FORMAT = Format("rendezvous", 2)
_WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Place:
    """Which process of a job this is: its rank among all, their number, and its rank on its machine."""

    rank: int
    world_size: int
    local_rank: int


def join(path: Path, place: Place, hosts: Sequence[str], work: bool) -> bool:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; return whether there is work to do.

    Rank 0 decides about the work, takes a port that is free at this moment, and writes both into `path`,
    which is new for every attempt; the others read them there. A port fixed in advance would meet the last
    attempt's socket, or another job's.

    Raises
    ------
    RunError
        Rank 0 has written nothing within five minutes.
    """
    if place.rank == 0:
        address = "127.0.0.1" if len(hosts) == 1 else hosts[0]
        said: dict[str, Any] = {"work": work, "address": address, "port": _free_port()}
        FORMAT.write(path, said)
    else:
        said = _wait_for(path)
    os.environ.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.world_size),
        LOCAL_RANK=str(place.local_rank),
        MASTER_ADDR=said["address"],
        MASTER_PORT=str(said["port"]),
    )
    return bool(said["work"])


def _wait_for(path: Path) -> dict[str, Any]:
    end = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < end:
        found = FORMAT.read(path)
        if found is not None:
            return found
        time.sleep(_POLL_SECONDS)
    raise RunError(f"rank 0 wrote nothing into {path} within {_WAIT_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("", 0))
        port: int = held.getsockname()[1]
        return port
