"""Numbers of finished evaluations, counted again from what they found in every image."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from carryover.configs import UserError
from carryover.configs.errors import DamagedFileError
from carryover.configs.files import sha256_file
from carryover.transfer.results.outcomes.base import Outcomes, read_outcomes
from carryover.transfer.results.reading import Problem, StoredRecord, read_records, require_runs
from carryover.transfer.results.record import Metric

_KEY = "outcomes"
# A sum of a thousand terms in another order.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Rescored:
    """A record's metrics as they stand there (`stated`) and as they come of its outcomes (`counted`)."""

    stored: StoredRecord
    stated: tuple[Metric, ...]
    counted: tuple[Metric, ...]

    @property
    def differing(self) -> tuple[Metric, ...]:
        """The stated metrics that do not come of the outcomes."""
        found = {m.label: m.value for m in self.counted}
        return tuple(m for m in self.stated if not _equal(m.value, found.get(m.label)))


def outcomes_of(stored: StoredRecord) -> Outcomes:
    """Read the outcomes that a record's numbers were counted from.

    Raises UserError where it has none (older records, tasks without any), or the file is gone;
    DamagedFileError where it is not as it was left.
    """
    record, path = stored.record, stored.path
    name = record.artifacts.get(_KEY)
    if name is None:
        raise UserError(
            f"{path}: keeps no per-image outcomes; written by carryover 0.1, or by a task without them"
        )
    file = path.parent / name
    if not file.is_file():
        raise UserError(f"{file}: gone; {path} states that its metrics were computed from it")
    if sha256_file(file) != record.digests.get(_KEY):
        raise DamagedFileError(f"{file}: damaged: it is not the file that {path} was counted from")
    return read_outcomes(file)


def rescore(runs: Iterable[Path]) -> tuple[list[Rescored], list[Problem]]:
    """Count the metrics of every record below some runs again; nothing is written.

    What cannot be counted again is returned as a Problem. Raises UserError for a run that is not there.
    """
    runs = list(runs)
    require_runs(runs)
    records, problems = read_records(runs)
    done: list[Rescored] = []
    for stored in records:
        try:
            counted = outcomes_of(stored).metrics()
        except UserError as error:
            problems.append(Problem(stored.path, str(error).removeprefix(f"{stored.path}: ")))
            continue
        done.append(Rescored(stored, stored.record.metrics, counted))
    return done, problems


def _equal(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and abs(one - other) <= _ROUNDING)
