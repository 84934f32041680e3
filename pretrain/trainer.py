"""The pretraining loop: a recipe and an output directory in, a canonical checkpoint out."""

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from carryover.configs import Identity, UserError, recipe_hash
from carryover.core.data.called import called
from carryover.core.data.digest import recipe_digest
from carryover.core.data.pictures import READING
from carryover.core.data.prepared import Batch, Dataset, Loader, build_dataset
from carryover.core.data.reading import reading_of_v1
from carryover.core.formats.canonical import CanonicalMetadata, read_metadata, save_canonical
from carryover.core.formats.claims import IDENTITY_NAME, RECIPE_NAME, Work
from carryover.core.training import provenance
from carryover.core.training.convolution import use_products
from carryover.core.training.device import peak_memory_gib, reset_peak_memory, seeded_generator
from carryover.core.training.distributed import Ranks, barrier, data_parallel, is_first, joined, with_sync_bn
from carryover.core.training.interrupt import StopRequest
from carryover.core.training.loop import Plan, require_finite
from carryover.core.training.loop import epochs as epochs_from
from carryover.core.training.loop import train as train_steps
from carryover.core.training.progress import progress
from carryover.core.training.window import averaged
from carryover.pretrain.accumulate import backward
from carryover.pretrain.compiled import compile_encoders
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.diagnostics import diagnose, refuse_collapse
from carryover.pretrain.knn_probe import KNNProbe
from carryover.pretrain.methods import DataFacts, Method, Moment, Outcome, build_method
from carryover.pretrain.online.recipe import signals_of, steps_between_looks
from carryover.pretrain.optim import build_optimizer, set_lr
from carryover.pretrain.transformer import sized

log = logging.getLogger(__name__)


def train(
    config: PretrainConfig,
    out: Path,
    *,
    until: int | None = None,
    start: Path | None = None,
    label: str | None = None,
) -> Path:
    """Pretrain as `config` says, in `out`; a half-finished run there is resumed, a finished one returned.

    A training may be done in parts, each in a directory of its own: stopped after epoch `until` of its
    schedule, and resumed from the checkpoint.pt (`start`) that the part before it left. The last part
    ends with the same weights, bit for bit, as a training in one go. `label` is what reports call it.

    Runs on the recipe's `device`: a GPU when there is one. Under torchrun (or any launcher that sets RANK,
    WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT) every rank calls this with the same arguments and
    `out` on a shared file system. SIGUSR2 or SIGTERM saves the state and leaves through `Interrupted`.

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
    work = _work(config, out)
    if exported.exists():
        _require_exported(exported, work)
        log.info("%s: already trained", out)
        return exported

    with joined(config.device) as ranks, StopRequest() as stop:
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
        if config.data.download and work.identity.parts["data"] is None:
            # Now that it has been fetched.
            work = _work(config, out)
        method = build_method(config, _facts(dataset))
        if config.sync_bn and ranks.world > 1:
            with_sync_bn(method, ranks.device)
        method.to(ranks.device)
        reset_peak_memory(ranks.device)
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
            training = _Pretraining(config, method, loader, dataset, ranks)
            _claim(work, ranks)
            seconds = train_steps(work, training.plan(epochs, start), training, ranks, stop)
        else:
            _claim(work, ranks)
        if ranks.first:
            state = method.online.backbone.state_dict()
            about = _metadata(config, ranks, seconds, epochs).model_copy(update={"label": label})
            save_canonical(exported, state, about)
        barrier()
    return exported


def _claim(work: Work, ranks: Ranks) -> None:
    if ranks.first:
        work.claim()
    barrier()


def identify(config: PretrainConfig) -> Identity:
    """Return what decides a pretraining's weights."""
    parts: dict[str, Any] = {"data": None}
    if config.method.trains:
        parts = {"data": recipe_digest(config) if is_first() else None, "reading": READING}
    return Identity.of(config, kind="pretrain", version=config.method.version, seed=config.seed, **parts)


def _work(config: PretrainConfig, out: Path) -> Work:
    """Return what is trained, and where; what version 1 began is compared with how it read the images."""

    def stated_by_v1() -> dict[str, Any]:
        return {"reading": reading_of_v1(config)} if config.method.trains else {}

    return Work(out, config, identify(config), stated_by_v1=stated_by_v1)


class _Pretraining:
    """A method in training, as the loop sees it."""

    def __init__(
        self, config: PretrainConfig, method: Method, loader: Loader, dataset: Dataset, ranks: Ranks
    ) -> None:
        self._config, self._method, self._loader, self._ranks = config, method, loader, ranks
        self._optimizer = build_optimizer(config.optimizer, method, config.peak_lr)
        self._probe = KNNProbe(config, dataset, ranks.device) if config.knn and ranks.first else None
        self._signals = signals_of(config, dataset) if ranks.first else None
        self._between = steps_between_looks(config, ranks.world)
        self._total = config.schedule.epochs * loader.steps_per_epoch
        self._model: torch.nn.Module = method
        self._outcome: Outcome | None = None
        self._factor = 0.0

    def plan(self, epochs: int, start: Path | None) -> Plan:
        """Plan the first `epochs`, from the state `start` where another part left one."""
        config, each = self._config, self._loader.steps_per_epoch
        return Plan(
            title=f"pretrain {config.name or config.method.name}",
            end=epochs * each,
            reports=lambda step: step % config.log_every == 0 or step % each == 0 or self._looks(step),
            saves=lambda step: step % (each * config.checkpoint_every) == 0,
            images_per_step=config.batch_size,
            start=start,
            tensorboard=config.tensorboard,
        )

    def begin(self, step: int) -> None:
        """Run the method's pass over all images before training, if it has one."""
        self._method.train()
        if step == 0:
            first_pass = _first_pass(self._loader, self._config, self._ranks)
            self._method.begin(_laid_out(first_pass, self._config))
        self._model = data_parallel(self._method, self._ranks)

    def batches(self, step: int) -> Generator[Batch, None, None]:
        """Yield batches of views, laid out as the networks want them."""
        yield from _laid_out(epochs_from(self._loader, step), self._config)

    def step(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Take one step of the method and the optimizer."""
        config, method = self._config, self._method
        self._factor = config.schedule.factor(step, self._loader.steps_per_epoch)
        set_lr(self._optimizer, self._factor)
        moment = Moment(step, self._total, _randomness(config.seed, step, self._ranks))
        method.advance(moment)
        self._optimizer.zero_grad(set_to_none=True)
        self._outcome = backward(self._model, method, batch, moment, config.accumulate)
        self._optimizer.step()
        return {"loss": self._outcome.loss, **self._outcome.numbers}

    def describe(self, step: int, means: dict[str, float]) -> dict[str, float]:
        """Diagnose the last step; look at the features every few epochs, where the recipe asks for it."""
        config, each = self._config, self._loader.steps_per_epoch
        assert self._outcome is not None
        numbers = _diagnosed(self._outcome)
        if step > each:
            refuse_collapse(means | numbers, step)
        numbers |= {"epoch": step / each, "lr": self._factor * config.peak_lr}
        if self._probe is not None and config.knn and step % (each * config.knn.every) == 0:
            numbers["knn_accuracy"] = self._probe.accuracy(self._method.online.backbone)
        if self._signals is not None and (self._looks(step) or step == self._total):
            online = self._method.online
            numbers |= self._signals.look(online.backbone, online.head, online.bf16)
        return numbers

    def _looks(self, step: int) -> bool:
        return self._between is not None and step % self._between == 0

    def require_finite(self, step: int) -> None:
        """Refuse weights that are not finite."""
        require_finite(dict(self._method.named_parameters()), step)

    def state(self) -> dict[str, Any]:
        """Return the method (networks, banks, queues) and the optimizer."""
        return {"method": self._method.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Load them."""
        seed = state.get("seed", self._config.seed)  # stated by version 1 only
        if seed != self._config.seed:
            raise UserError(f"the training state is of seed {seed}, not {self._config.seed}")
        self._method.load_state_dict(state["method"])
        self._optimizer.load_state_dict(state["optimizer"])


def _laid_out(batches: Iterable[Batch], config: PretrainConfig) -> Iterator[Batch]:
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    for batch in batches:
        yield Batch(batch.index, [v.contiguous(memory_format=layout) for v in batch.views], batch.label)


def _first_pass(loader: Loader, config: PretrainConfig, ranks: Ranks) -> Iterator[Batch]:
    """Yield every image once, for methods that look at all of them before the first step."""
    title = f"first pass over {called(config.data)}"
    with progress(title, loader.steps_of_whole, shown=ranks.first) as bar:
        for batch in loader.whole():
            yield batch
            bar.advance()


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
    return seeded_generator(ranks.device, shared)


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
    return CanonicalMetadata(
        backbone=sized(config),
        norm="own" if config.backbone.family == "timm" else "bn",
        pixel_mean=config.augment.mean,
        pixel_std=config.augment.std,
        input_size=config.augment.view.size,
        method=config.method.name,
        epochs=epochs,
        dataset=called(config.data),
        seed=config.seed,
        recipe=config.name,
        recipe_hash=recipe_hash(config),
        git_revision=provenance.git_revision(),
        library_versions=dict(provenance.library_versions()),
        gpu_hours=seconds * ranks.world / 3600 if ranks.device.type != "cpu" else None,
        wall_seconds=seconds,
        peak_gpu_memory_gib=peak_memory_gib(ranks.device),
    )
