"""A whole evaluation in two processes, as torchrun would start them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

PROGRAM = """
import pathlib, sys
from carryover.configs import UserError, load
from carryover.transfer.tasks.evaluate import evaluate

recipe, checkpoint, out, *overrides = sys.argv[1:]
try:
    config = load("transfer", recipe, overrides)
    evaluate(config, pathlib.Path(checkpoint), pathlib.Path(out))
    print("done")
except UserError as error:
    print(error)
"""


def evaluate_in_two_processes(
    recipe: str, checkpoint: Path, out: Path, overrides: Sequence[str], wait: float = 280
) -> list[str]:
    """Evaluate on both ranks and return all that each printed: 'done', or a UserError.

    Ranks that have not ended after `wait` seconds are killed and `TimeoutExpired` is raised.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, recipe, str(checkpoint), str(out), *overrides],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=wait)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [text.strip() for text in said]
