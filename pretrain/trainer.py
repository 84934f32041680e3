"""The pretraining loop: a recipe and an output directory in, a canonical checkpoint out."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from carryover.configs import Identity, UserError, WorkError, recipe_hash
from carryover.configs.files import write_atomic
from carryover.core.data.digest import data_digest
from carryover.core.data.prepared import Batch, Dataset, Loader, build_dataset
from carryover.core.formats.canonical import CanonicalMetadata, read_metadata, save_canonical
from carryover.core.formats.claims import IDENTITY_NAME, RECIPE_NAME, Work
from carryover.core.formats.state import load_state, save_state
from carryover.core.training import provenance
from carryover.core.training.allocation import freed_memory_kept
from carryover.core.training.convolution import use_products
from carryover.core.training.distributed import Ranks, barrier, data_parallel, is_first, joined, with_sync_bn
from carryover.core.training.interrupt import Interrupted, StopRequest
from carryover.core.training.journal import Journal
from carryover.core.training.progress import progress
from carryover.core.training.window import Window, averaged
from carryover.pretrain.accumulate import backward
from carryover.pretrain.compiled import compile_encoders
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.diagnostics import diagnose, refuse_collapse
from carryover.pretrain.knn_probe import KNNProbe
from carryover.pretrain.methods import DataFacts, Method, Moment, Outcome, build_method
from carryover.pretrain.optim import build_optimizer, set_lr

log = logging.getLogger(__name__)


def train(config: PretrainConfig, out: Path, *, until: int | None = None, start: Path | None = None) -> Path:
    """Pretrain as `config` says, in `out`; a half-finished run there is resumed, a finished one returned.

    A training may be done in parts, each in a directory of its own: stopped after epoch `until` of its
    schedule, and gone on with from the checkpoint.pt (`start`) that the part before it left. The last part
    ends with the same weights, bit for bit, as a training in one go.

    Runs on the GPU when there is one. Under torchrun (or any launcher that sets RANK, WORLD_SIZE, LOCAL_RANK,
    MASTER_ADDR and MASTER_PORT) every rank calls this with the same arguments and `out` on a shared file
    system. SIGUSR2 or SIGTERM saves the state and leaves through `Interrupted`.

    Returns
    -------
    Path
        out/backbone.safetensors. Beside it: checkpoint.pt (to resume from), metrics.jsonl, recipe.yaml.

    Raises
    ------
    UserError
        Data, batch size or recipe that cannot work, or an `out` that holds another run.
    WorkError
        A loss or weights that are not finite (the last good state is kept), or no whole state in `start`.
    """
    epochs = config.schedule.epochs if until is None else until
    if epochs > config.schedule.epochs:
        raise UserError(f"until: {until} epochs of a schedule of {config.schedule.epochs}")
    exported = out / "backbone.safetensors"
    work = Work(out, config, identify(config))
    if exported.exists():
        _require_exported(exported, work)
        log.info("%s: already trained, nothing to do", out)
        return exported

    with joined() as ranks, StopRequest() as stop, freed_memory_kept(ranks.device):
        share = ranks.share_of(config.batch_size)
        if share < 2:
            raise UserError(
                f"batch_size {config.batch_size} leaves each of {ranks.world} processes {share} image: batch"
                " statistics need at least 2"
            )
        if share % config.accumulate or share // config.accumulate < 2:
            raise UserError(
                f"accumulate {config.accumulate} must divide the {share} images of each process into parts of"
                " at least 2"
            )
        # Weights that stay as they are drawn need no images.
        dataset = build_dataset(config.data) if config.method.trains else None
        method = build_method(config, _facts(dataset))
        if config.sync_bn and ranks.world > 1:
            with_sync_bn(method, ranks.device)
        method.to(ranks.device)
        if ranks.device.type == "cuda":
            # This process may have done other work before, and the peak is this training's.
            torch.cuda.reset_peak_memory_stats(ranks.device)
        if config.channels_last:
            method.to(memory_format=torch.channels_last)
        use_products(method)
        if config.compile:
            compile_encoders(method)

        seconds = 0.0
        if dataset is not None:
            loader = Loader(
                dataset,
                config.augment,
                share,
                config.seed,
                ranks.rank,
                ranks.world,
                config.workers,
                device=ranks.device,
            )
            probe = KNNProbe(config, dataset, ranks.device) if config.knn and ranks.first else None
            seconds = _optimise(config, work, out, method, loader, probe, ranks, stop, epochs, start)
        else:
            _claim(work, ranks)
        if ranks.first:
            state = method.online.backbone.state_dict()
            save_canonical(exported, state, _metadata(config, ranks, seconds, epochs))
        barrier()
    return exported


def _claim(work: Work, ranks: Ranks) -> None:
    if ranks.first:
        work.claim()
    barrier()


def identify(config: PretrainConfig) -> Identity:
    """Return what decides a pretraining's weights."""
    data = data_digest(config.data) if config.method.trains and is_first() else None
    return Identity.of(config, kind="pretrain", version=config.method.version, seed=config.seed, data=data)


def _optimise(
    config: PretrainConfig,
    work: Work,
    out: Path,
    method: Method,
    loader: Loader,
    probe: KNNProbe | None,
    ranks: Ranks,
    stop: StopRequest,
    epochs: int,
    start: Path | None,
) -> float:
    """Take every step of the first `epochs` not yet taken; return the seconds spent on all of them."""
    epoch_steps = loader.steps_per_epoch
    total, end = config.schedule.epochs * epoch_steps, epochs * epoch_steps
    optimizer = build_optimizer(config.optimizer, method, config.peak_lr)
    history = _History(work, out, method, optimizer, ranks)

    _claim(work, ranks)
    step = history.restore(start)
    method.train()
    if step == 0:
        method.begin(_laid_out(_first_pass(loader, config, ranks), config))
    model = data_parallel(method, ranks)

    with ExitStack() as stack:
        journal = None
        if ranks.first:
            journal = stack.enter_context(Journal(out, step, config.tensorboard, end))
        title = f"pretrain {config.name or config.method.name}"
        bar = stack.enter_context(progress(title, end, step, ranks.first))
        window = Window(config.batch_size)
        while step < end:
            epoch, begun = divmod(step, epoch_steps)
            for batch in _laid_out(loader.epoch(epoch, begun), config):
                window.batch_arrived()
                factor = config.schedule.factor(step, epoch_steps)
                set_lr(optimizer, factor)
                moment = Moment(step, total, _randomness(config.seed, step, ranks))
                method.advance(moment)

                optimizer.zero_grad(set_to_none=True)
                outcome = backward(model, method, batch, moment, config.accumulate)
                optimizer.step()
                window.step_taken(outcome.loss, outcome.numbers)
                step += 1

                save = step == end or step % (epoch_steps * config.checkpoint_every) == 0
                report = save or step % config.log_every == 0 or step % epoch_steps == 0
                # Several ranks agree on stopping by a collective call: they ask only where they meet anyway.
                leave = (report or ranks.world == 1) and stop.requested() and step < end
                numbers = {}
                if report or leave:
                    numbers = window.close(step) | _diagnosed(outcome)
                    if step > epoch_steps:
                        refuse_collapse(numbers, step)
                    numbers |= {"epoch": step / epoch_steps, "lr": factor * config.peak_lr}
                    if probe is not None and config.knn and step % (epoch_steps * config.knn.every) == 0:
                        numbers["knn_accuracy"] = probe.accuracy(method.online.backbone)
                    if journal is not None:
                        journal.write(step, numbers)
                if save or leave:
                    history.save(step)
                if leave:
                    raise Interrupted(stop.signum)
                if report:
                    window = Window(config.batch_size)
                bar.advance(1, **_shown(numbers))
    return history.seconds()


class _History:
    """What outlives this process: the state to resume from, and the time spent so far."""

    def __init__(
        self,
        work: Work,
        out: Path,
        method: Method,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
    ) -> None:
        self._work, self._out, self._ranks = work, out, ranks
        self._method, self._optimizer = method, optimizer
        self._path = out / "checkpoint.pt"
        self._seconds_before = 0.0
        self._started = time.monotonic()

    def seconds(self) -> float:
        """Return the wall seconds of this run, those before interruptions included."""
        return self._seconds_before + time.monotonic() - self._started

    def restore(self, start: Path | None = None) -> int:
        """Load the newest whole state, at first `start`; return the number of steps behind it, or 0."""
        state, path = load_state(self._path), self._path
        if state is None and start is not None:
            state, path = load_state(start), start
            if state is None:
                raise WorkError(f"{start}: no whole state to go on from")
            if self._ranks.first and (log_there := start.with_name("metrics.jsonl")).exists():
                write_atomic(self._out / log_there.name, log_there.read_text(encoding="utf-8"))
        if state is None:
            return 0
        there = state.get("identity", state.get("recipe_hash"))
        replace(self._work, out=path.parent).require(path, there)
        seed = self._work.identity.parts["seed"]
        if state.get("seed", seed) != seed:  # of version 1
            raise UserError(f"{path}: holds the training state of another seed: {state['seed']}, not {seed}")
        self._method.load_state_dict(state["method"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._seconds_before = state["seconds"]
        log.info("%s: resuming after step %d", self._out, state["step"])
        return int(state["step"])

    def save(self, step: int) -> None:
        """Save the state after `step` steps; every rank leaves when the file is there.

        Raises WorkError, and keeps the last good state, when a weight is not finite.
        """
        # A sharded bank is gathered for its state: every rank takes part, though only the first one writes.
        method = self._method.state_dict()
        for name, value in self._method.named_parameters():
            if not torch.isfinite(value).all():
                raise WorkError(
                    f"'{name}' has values that are not finite after step {step};"
                    f" stopped, and the last good state is kept in {self._path}"
                )
        if self._ranks.first:
            state = {
                "step": step,
                "identity": self._work.identity.to_json(),
                "seconds": self.seconds(),
                "method": method,
                "optimizer": self._optimizer.state_dict(),
            }
            save_state(self._path, state)
        barrier()


def _laid_out(batches: Iterable[Batch], config: PretrainConfig) -> Iterator[Batch]:
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    for batch in batches:
        yield Batch(batch.index, [v.contiguous(memory_format=layout) for v in batch.views], batch.label)


def _first_pass(loader: Loader, config: PretrainConfig, ranks: Ranks) -> Iterator[Batch]:
    """Yield every image once, for methods that look at all of them before the first step."""
    title = f"first pass over {config.data.title}"
    with progress(title, loader.steps_of_whole, shown=ranks.first) as bar:
        for batch in loader.whole():
            yield batch
            bar.advance()


def _shown(numbers: dict[str, float]) -> dict[str, float | str]:
    """Pick what the progress line says of a reported step."""
    if not numbers:
        return {}
    waited = f"{numbers['loader_wait']:.0%} of the time"
    return {
        "loss": numbers["loss"],
        "images/s": numbers["images_per_second"],
        "waited for images": waited,
    }


def _diagnosed(outcome: Outcome) -> dict[str, float]:
    """Measure a step where the training reports; its loss is known to be finite."""
    with torch.no_grad():
        numbers = outcome.details()
    if outcome.queries is not None:
        numbers = diagnose(outcome.queries, outcome.keys, outcome.queries.grad) | numbers
    return averaged(numbers)


def _randomness(seed: int, step: int, ranks: Ranks) -> torch.Generator:
    """Seed this step: torch's own generator differently on every rank, and one that all ranks share.

    Since every step is seeded afresh, no generator's state needs saving for an exact resume.
    """
    shared, *own = np.random.SeedSequence([seed, step]).generate_state(1 + ranks.world, np.uint64).tolist()
    torch.manual_seed(own[ranks.rank])
    return torch.Generator(ranks.device).manual_seed(shared)


def _require_exported(exported: Path, work: Work) -> None:
    """Refuse a finished checkpoint of other work; where its directory does not say, it says so itself."""
    metadata = read_metadata(exported)
    if (exported.parent / IDENTITY_NAME).exists() or (exported.parent / RECIPE_NAME).exists():
        if is_first():
            work.claim()
    elif (metadata.recipe_hash, metadata.seed) != (recipe_hash(work.recipe), work.identity.parts["seed"]):
        raise UserError(
            f"{exported}: a checkpoint of another recipe or seed, and nothing beside it says of which;"
            " choose another directory, or remove this one"
        )


def _facts(dataset: Dataset | None) -> DataFacts:
    if dataset is None:
        return DataFacts(0, None)
    return DataFacts(len(dataset), None if dataset.labels is None else len(dataset.classes))


def _metadata(config: PretrainConfig, ranks: Ranks, seconds: float, epochs: int) -> CanonicalMetadata:
    on_gpu = ranks.device.type == "cuda"
    return CanonicalMetadata(
        backbone=config.backbone,
        pixel_mean=config.augment.mean,
        pixel_std=config.augment.std,
        input_size=config.augment.view.size,
        method=config.method.name,
        epochs=epochs,
        dataset=config.data.title,
        seed=config.seed,
        recipe=config.name,
        recipe_hash=recipe_hash(config),
        git_revision=provenance.git_revision(),
        library_versions=dict(provenance.library_versions()),
        gpu_hours=seconds * ranks.world / 3600 if on_gpu else None,
        wall_seconds=seconds,
        peak_gpu_memory_gib=torch.cuda.max_memory_allocated(ranks.device) / 2**30 if on_gpu else None,
    )
