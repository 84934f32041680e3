"""The local executor: stages as processes of this machine, several at a time, through submitit."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import submitit

from carryover.slurm import sbatch
from carryover.slurm.errors import RequestError
from carryover.slurm.executor import Run
from carryover.slurm.flights import Flights
from carryover.slurm.job import StageJob
from carryover.slurm.plan import Action, Decision, working
from carryover.slurm.processes import handling, noting
from carryover.slurm.stage import portable

_POLL_SECONDS = 0.2
_ASK_SECONDS = 10.0
_NO_LIMIT_MINUTES = 60 * 24 * 365


@dataclass
class _Running:
    decision: Decision
    job: "submitit.LocalJob[None] | None"
    gpus: tuple[int, ...] = ()
    asked_at: float = 0.0


@dataclass(frozen=True)
class LocalExecutor:
    """Runs up to `at_once` stages side by side, each as `tasks_per_node` processes.

    A stage starts when those it waits for have ended and enough of `gpus` are free. A machine has one node
    and no time limit: `Resources.nodes` and `time_min` are passed over. Stopped by a signal, it asks the
    stages to save their state and waits for them.
    """

    at_once: int = 2
    gpus: tuple[int, ...] = field(default_factory=lambda: visible_gpus())
    packages: tuple[str, ...] = ()
    name = "local"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "LocalExecutor":
        """Make one from "at_once" and "packages"."""
        return cls(int(settings.get("at_once", 2)), packages=tuple(settings.get("packages", ())))

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings from which `of` builds this executor again, on any machine."""
        return {"at_once": self.at_once, "packages": list(self.packages)}

    def execute(self, run: Run) -> int:
        """Run the plan; returns the number of the signal that stopped it, or 0."""
        for decision in working(run.plan):
            name, asked = decision.stage.name, decision.stage.resources.gpus_per_node
            if asked > len(self.gpus):
                raise RequestError(f"stage {name} asks for {asked} GPUs; this machine has {len(self.gpus)}")
        waiting = list(working(run.plan))
        running = [_Running(d, None) for d in run.plan if d.action is Action.IN_FLIGHT]
        with noting() as signals, _set(sbatch.job_environment(run.ledger, self.packages)):
            while waiting or running:
                running = [r for r in running if not self._ended(run, r)]
                if signals:
                    self._stop(run, running, signals[0])
                    return signals[0]
                waiting = self._start_ready(run, waiting, running)
                time.sleep(_POLL_SECONDS)
        return 0

    def _start_ready(self, run: Run, waiting: list[Decision], running: list[_Running]) -> list[Decision]:
        left: list[Decision] = []
        for decision in waiting:
            stage = decision.stage
            open_ones = {d.stage.name for d in left} | {r.decision.stage.name for r in running}
            taken = {gpu for r in running for gpu in r.gpus}
            free = tuple(gpu for gpu in self.gpus if gpu not in taken)
            reason = run.blocked_by(decision)
            if reason:
                run.block(decision, reason)
            elif (
                open_ones.intersection((*stage.upstream, *stage.after))
                or len(running) >= self.at_once
                or len(free) < stage.resources.gpus_per_node
            ):
                left.append(decision)
            else:
                running.append(self._start(run, decision, free[: stage.resources.gpus_per_node]))
        return left

    def _start(self, run: Run, decision: Decision, gpus: tuple[int, ...]) -> _Running:
        executor = submitit.LocalExecutor(sbatch.folder(run.ledger), python=sbatch.interpreter())
        executor.update_parameters(
            tasks_per_node=decision.stage.resources.tasks_per_node,
            timeout_min=_NO_LIMIT_MINUTES,
            gpus_per_node=len(gpus),
            visible_gpus=gpus,
        )
        call = StageJob(run.ledger.run_dir, portable(decision.stage), decision.hash, self.name)
        # The children must not share Ctrl-C with this process: they are asked to stop with SIGTERM.
        with handling(signal.SIG_IGN, (signal.SIGINT,)):
            try:
                job = executor.submit(call)
            except OSError:
                raise
            except Exception as error:  # whatever putting a user's function into a file raises
                raise decision.stage.calls.cannot_be_sent(decision.stage.name, error) from error
        assert isinstance(job, submitit.LocalJob)
        run.tell(decision, "running", decision.reason)
        return _Running(decision, job, gpus)

    def _ended(self, run: Run, running: _Running, stopped: bool = False) -> bool:
        if running.job is not None and not running.job.done():
            return False
        if running.job is None and not self._left(run, running):
            return False
        return self._tell_end(run, running.decision, stopped)

    def _left(self, run: Run, running: _Running) -> bool:
        """Return whether a stage in flight elsewhere has ended; called every few seconds."""
        if time.monotonic() - running.asked_at < _ASK_SECONDS:
            return False
        running.asked_at = time.monotonic()
        sight = Flights(run.ledger).sight(run.record(running.decision))
        return not (sight.where or sight.unknown)

    def _tell_end(self, run: Run, decision: Decision, stopped: bool = False) -> bool:
        record = run.record(decision)
        if record.state in ("running", "waiting"):
            attempts = run.ledger.closed(record, running=False)
            reason = "its process was killed, or could not start: see its logs"
            if stopped:
                record = record.changed("interrupted", "stopped before it began", attempts=attempts)
            else:
                record = record.changed("failed", reason, attempts=attempts)
            run.ledger.write(record)
        seconds = record.attempts[-1].seconds if record.attempts else 0.0
        run.tell(decision, record.state, record.reason, seconds)
        return True

    def _stop(self, run: Run, running: list[_Running], signum: int) -> None:
        for one in running:
            if one.job is not None and not one.job.done():
                os.kill(int(one.job.job_id), signal.SIGTERM)
        while running:
            time.sleep(_POLL_SECONDS)
            running = [r for r in running if r.job is not None and not self._ended(run, r, stopped=True)]


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, for this process's children, and put back what was there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def visible_gpus() -> tuple[int, ...]:
    """Return the numbers of this machine's GPUs, within CUDA_VISIBLE_DEVICES where that is set."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return tuple(int(n) for n in chosen.split(",") if n.strip().isdigit())
    if shutil.which("nvidia-smi") is None:
        return ()
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    return tuple(range(sum(line.startswith("GPU ") for line in done.stdout.splitlines())))
