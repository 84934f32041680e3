"""One process at a time in the output directory of an evaluation or a pretraining."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from carryover.configs import UserError
from carryover.configs.leftovers import taken_back
from carryover.slurm.ledger import Ledger
from carryover.slurm.submission import submission

IMPORT_NAME: Final = "imported.safetensors"
"""A checkpoint of another maker, as an evaluation of it reads it."""


@contextmanager
def alone_in(out: Path, command: str, finished: str, line: str = "") -> Iterator[None]:
    """Hold the directory of one piece of work as a run is held, and take back what a failure leaves there.

    Nothing is held where the work is finished (the file `finished` is there), since nothing is written then,
    and on other ranks than the first. What a failed or interrupted command made is removed, unless there is
    work among it to go on from. `command` is one of `slurm.submission.SINGLE`, `line` the command line, which
    is kept for `carryover status`.

    Raises
    ------
    RunError
        Another living process holds the directory; the message names it, its machine, and since when.
    UserError
        `out` is a run directory.
    """
    from carryover.core.formats.claims import CLAIM, IDENTITY_NAME
    from carryover.core.training.distributed import is_first

    ledger, result = Ledger(out), out / finished
    if not is_first() or (result.is_file() and result.stat().st_size > 0):
        yield
        return
    if ledger.pipeline_file.exists():
        raise UserError(
            f"{out}: a run directory; choose another one with --out (`carryover run` evaluates in it)"
        )
    of_no_use = ("submissions/*.json", IMPORT_NAME, *CLAIM)
    # Of work that had begun before it is kept who went on with it, and how that ended.
    errors = UserError if (out / IDENTITY_NAME).is_file() else BaseException
    with taken_back(out, of_no_use, errors), submission(ledger, command) as held:
        if line:
            held.update(origin={"command": line, "directory": str(Path.cwd())})
        yield
