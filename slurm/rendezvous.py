"""How the processes of one job find one another: torch.distributed's standard environment variables."""

import os
import socket
import time
from pathlib import Path

from slurm.errors import RunError
from slurm.files import read_json, write_json

_WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.5


def join(
    directory: Path, attempt: str, rank: int, world_size: int, local_rank: int, hosts: list[str]
) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT for this process.

    Rank 0 takes a port that is free at this moment and writes it into `directory` under the attempt's name;
    the others read it there. A port fixed in advance would meet the last attempt's socket, or another job's.

    Raises
    ------
    RunError
        Rank 0 has written no port within five minutes.
    """
    path = directory / f"{attempt}.json"
    if rank == 0:
        address = "127.0.0.1" if len(hosts) == 1 else hosts[0]
        port = _free_port()
        write_json(path, {"address": address, "port": port})
    else:
        address, port = _wait_for(path)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(local_rank),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )


def _wait_for(path: Path) -> tuple[str, int]:
    end = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < end:
        found = read_json(path)
        if found is not None:
            return found["address"], found["port"]
        time.sleep(_POLL_SECONDS)
    raise RunError(f"rank 0 wrote no address into {path} within {_WAIT_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("", 0))
        port: int = held.getsockname()[1]
        return port
