"""Stopping in good order: a scheduler's USR2 or TERM is noted, and the loop leaves after saving."""

import signal
from types import FrameType, TracebackType
from typing import cast

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Interrupted(SystemExit):
    """Raised by a training loop that was asked to stop and has saved its state; exit status 128 + signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"interrupted by {signal.Signals(self.signum).name}; the state is saved, run again to resume"


class StopRequest:
    """Catches SIGUSR2 and SIGTERM while inside its `with` block, and remembers that one came.

    Handlers can be set only in a process's main thread; elsewhere nothing is caught. Requeueing is the
    caller's business: the loop leaves with `Interrupted`, whose exit status tells it so.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._agreement: tuple[dist.ProcessGroup, dist.Work, torch.Tensor] | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Return whether any rank was asked to stop; every rank calls this at every step and hears the same.

        Over several ranks the answer is that of one step before: the ranks exchange it on the host while they
        compute, so that no device waits for it.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self.signum != 0
        agreed = 0
        if self._agreement is None:
            group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        else:
            group, exchange, flag = self._agreement
            exchange.wait()
            agreed = int(flag.item())
        flag = torch.tensor([self.signum])
        exchange = dist.all_reduce(flag, dist.ReduceOp.MAX, group, async_op=True)
        self._agreement = group, exchange, flag
        if agreed:
            self.signum = agreed
        return agreed != 0

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum


def outlive_signals(worker: int) -> None:
    """Make a loader's process ignore what its trainer catches: pass as a DataLoader's `worker_init_fn`.

    A scheduler signals every process of a job; were the loaders to die of it, the trainer could not save.
    They leave when their iterator does, so a loop that may be interrupted must close it.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
