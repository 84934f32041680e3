"""Training in mmengine's Runner: its loop, optimiser and schedule, our log, states and way of stopping."""

import logging
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from carryover.configs.files import atomic_file
from carryover.core.formats.state import FORMAT, previous
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.iterations import Keeper, Window, step_seed
from carryover.core.training.progress import progress
from carryover.transfer.draws import step_loader
from carryover.transfer.segment.backend import Training
from carryover.transfer.segment.batches import Steps
from carryover.transfer.segment.fcn_train import CAUSE
from carryover.transfer.segment.mmseg_data import MmsegTrainingImages

log = logging.getLogger(__name__)

STATE_NAME = "checkpoint.pth"
WORK_NAME = "mmengine"
_OURS = "carryover"
_LOSSES = {"loss": "loss", "decode.loss_ce": "loss_seg", "aux.loss_ce": "loss_aux"}


class _Loop(IterBasedTrainLoop):
    """mmengine's loop over a loader that starts at the resumed iteration, so that none is skipped over."""

    def run(self) -> nn.Module:
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        try:
            while self._iter < self._max_iters:
                self.runner.model.train()
                self.run_iter(next(self.dataloader_iterator))
        finally:
            # Or the loaders' processes would outlive an interruption.
            del self.dataloader_iterator
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model


class _Bf16OptimWrapper(OptimWrapper):
    """Autocasts the network to bfloat16 on any device; mmengine's own is for GPUs only."""

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


class _KeeperHook(Hook):
    """Proves before the first iteration, seeds each, and lets `keeper` look after it."""

    # After the schedule's own hook, so that what is saved is ready for the next iteration.
    priority = "LOWEST"

    def __init__(self, run: Training, keeper: Keeper, prove: Callable[[nn.Module], int]) -> None:
        self.run, self.keeper, self.prove = run, keeper, prove
        self.rate = 0.0

    def before_train(self, runner: Runner) -> None:
        if runner.iter == 0:
            self.prove(_bare(runner.model))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        torch.manual_seed(step_seed(self.run.config.seed, runner.iter, self.run.ranks.rank))
        self.rate = float(runner.optim_wrapper.get_lr()["lr"][0])

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.keeper.after(
            runner.iter + 1, self.rate, _losses(outputs), runner.model, lambda: self._save(runner)
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        # mmengine's histories of its own log hold classes that torch.load, which executes nothing, refuses to
        # read; ours is in metrics.jsonl.
        checkpoint["message_hub"]["log_scalars"] = {}

    def _save(self, runner: Runner) -> None:
        """Let mmengine write its checkpoint, then move it into place; the one before is kept."""
        ours = {
            "identity": self.run.work.identity.to_json(),
            "seconds": self.keeper.seconds,
            "window": self.keeper.window.numbers(),
            "window_count": self.keeper.window.count,
        }
        path = self.run.out / STATE_NAME
        with atomic_file(path) as temporary:
            meta = {_OURS: FORMAT.stamped(ours)}
            runner.save_checkpoint(str(self.run.out), temporary.name, meta=meta, by_epoch=False)
            if path.exists():
                path.replace(previous(path))


def train_model(
    run: Training, model: nn.Module, stop: StopRequest, prove: Callable[[nn.Module], int]
) -> float:
    """Train `model` in place; see `backend.Segmenter.train`. `prove` is called before the first iteration."""
    config, solver, ranks = run.config, run.config.solver, run.ranks
    path, state = latest_state(run)
    start = 0 if state is None else int(state["meta"]["iter"])
    carried = {} if state is None else state["meta"][_OURS]
    if state is not None and start >= solver.iterations:
        model.load_state_dict(state["state_dict"])
        model.to(ranks.device)
        return float(carried["seconds"])
    if path is not None:
        log.info("%s: resumed at iteration %d", run.out, start)
    images = MmsegTrainingImages(run.dataset, config.input, config.seed)
    size, world = solver.ims_per_batch, ranks.world
    steps = Steps(len(run.dataset.images), size, config.seed, start, solver.iterations, ranks.rank, world)
    with progress(f"train {run.config.model.label}", solver.iterations, start, run.ranks.first) as bar:
        window = Window(carried.get("window"), carried.get("window_count", 0))
        before = carried.get("seconds", 0.0)
        keeper = Keeper(run, solver.iterations, stop, bar, start, before, window, CAUSE)
        runner = Runner(
            model=model,
            work_dir=str(run.out / WORK_NAME),
            train_dataloader=step_loader(images, steps, config.workers, pseudo_collate),
            train_cfg={"type": _Loop, "max_iters": solver.iterations},
            optim_wrapper={
                "type": _Bf16OptimWrapper if solver.precision == "bf16" else OptimWrapper,
                "optimizer": {
                    "type": "SGD",
                    "lr": solver.peak_lr,
                    "momentum": solver.momentum,
                    "weight_decay": solver.weight_decay,
                },
            },
            param_scheduler={
                "type": "PolyLR",
                "eta_min": solver.final_lr,
                "power": solver.power,
                "begin": 0,
                "end": solver.iterations,
                "by_epoch": False,
            },
            default_hooks={"timer": None, "logger": None, "checkpoint": None, "sampler_seed": None},
            custom_hooks=[_KeeperHook(run, keeper, prove)],
            load_from=None if path is None else str(path),
            resume=path is not None,
            launcher="pytorch" if world > 1 else "none",
            log_level="ERROR",
            default_scope="mmseg",
            randomness={"seed": config.seed},
            experiment_name=f"{run.work.identity.hash[:12]}-{time.monotonic_ns()}",
        )
        runner.train()
    return keeper.seconds


def latest_state(run: Training) -> tuple[Path | None, dict[str, Any] | None]:
    """Return the newest whole state in `out` and its file; a torn file is passed over, and said so.

    Raises UserError for the state of another run.
    """
    newest = run.out / STATE_NAME
    for path in (newest, previous(newest)):
        if not path.exists():
            continue
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, ValueError) as error:
            log.warning("%s is damaged (%s); trying the state before it", path, error)
            continue
        ours = FORMAT.current(state["meta"].get(_OURS, {}), path)
        run.work.require(path, ours.get("identity"))
        return path, state
    return None, None


def _losses(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {ours: outputs[theirs] for theirs, ours in _LOSSES.items() if theirs in outputs}


def _bare(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model) if is_model_wrapper(model) else model
