"""The public Python API: what `import carryover` offers, each function typed and without global state."""

import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from carryover.core.backbones.given import Given
    from carryover.core.backbones.inspection import Inspection
    from carryover.core.backbones.interface import Backbone
    from carryover.core.backbones.stated import Stated
    from carryover.core.formats.receipt import Receipt
    from carryover.transfer.results.record import ResultRecord

log = logging.getLogger(__name__)

PathLike = str | Path


def load_backbone(
    path: PathLike, *, encoder: str | None = None, stated: "Stated | None" = None
) -> "Backbone":
    """Load the backbone of a checkpoint of any known maker, weights included.

    Parameters
    ----------
    encoder
        Which encoder of the file to take: "online", "momentum", "student", "teacher", or a prefix.
    stated
        What the file does not say (`carryover.Stated`): its architecture, stride, pixel statistics, ...

    Returns
    -------
    Backbone
        An nn.Module in evaluation mode, float32, on the CPU. `stages`, `strides` and `widths` describe it;
        ``features(x)`` gives every stage's maps of images x (B, 3, H, W), ``pooled(x)`` vectors (B, D), and
        `metadata` what the file says (pixel mean and deviation, method, epochs).

    Raises
    ------
    UserError
        The file is missing, damaged, or of a maker or network that is not known.
    """
    from carryover.core.backbones.interface import Backbone

    return Backbone.of(Path(path), encoder, stated)


def evaluate(
    checkpoint: "PathLike | nn.Module",
    recipe: PathLike,
    *,
    data: PathLike | None = None,
    out: PathLike | None = None,
    said: "Given | None" = None,
    encoder: str | None = None,
    stated: "Stated | None" = None,
    **overrides: Any,
) -> "ResultRecord":
    """Evaluate a checkpoint, or a network in memory, by a recipe.

    Parameters
    ----------
    checkpoint
        A file of any known maker. For frozen-feature tasks (k-NN, linear, SVM, t-SNE) also an nn.Module that
        turns images (B, 3, H, W) into vectors (B, D) or maps (B, C, H, W). A module is left as it was: its
        modes, gradients, `requires_grad` and device, and the random states of torch, numpy and Python.
    recipe
        A recipe's name, or a YAML file.
    data
        Root of the data set; overrides the recipe's ``data.root``.
    out
        Directory for the record and what belongs to it; an interrupted one is resumed. None: nothing is
        kept but what is returned.
    said
        What is known of a module (`carryover.Given`): its label, normalization, input size.
    stated
        What another maker's file does not say (`carryover.Stated`).
    overrides
        Keys of the recipe: ``k=[5]``, ``labels={"name": "all"}``, ``**{"solver.max_iter": 500}``.

    Raises
    ------
    UserError
        A recipe, data set or checkpoint that cannot work together, or `out` holds other work.
    WorkError
        The work failed: a loss or features that are not finite, a verification that fails. Or another
        process is at work in `out`.
    """
    if not isinstance(checkpoint, str | Path):
        from carryover.core.backbones.given import random_states_kept

        # What is imported on the way may draw as well.
        with random_states_kept(checkpoint):
            return _evaluate(checkpoint, recipe, data, out, said, encoder, stated, overrides)
    return _evaluate(checkpoint, recipe, data, out, said, encoder, stated, overrides)


def _evaluate(
    checkpoint: "PathLike | nn.Module",
    recipe: PathLike,
    data: PathLike | None,
    out: PathLike | None,
    said: "Given | None",
    encoder: str | None,
    stated: "Stated | None",
    overrides: Mapping[str, Any],
) -> "ResultRecord":
    from carryover.configs import UserError, load
    from carryover.pretrain import override_strings
    from carryover.transfer.results.record import RECORD_NAME
    from carryover.transfer.tasks.evaluate import canonical_of
    from carryover.transfer.tasks.evaluate import evaluate as run
    from carryover.transfer.tasks.holding import alone_in

    given = [*override_strings(overrides), *([] if data is None else [f"data.root={data}"])]
    config = load("transfer", recipe, given)
    with ExitStack() as stack:
        kept = stack.enter_context(tempfile.TemporaryDirectory()) if out is None else out
        if out is not None:
            stack.enter_context(alone_in(Path(out), "evaluate", RECORD_NAME))
        if isinstance(checkpoint, str | Path):
            return run(config, canonical_of(Path(checkpoint), Path(kept), encoder, None, stated), Path(kept))

        from carryover.core.backbones.given import Given, source_of
        from carryover.transfer.tasks.frozen.config import FrozenRecipe

        if not isinstance(config, FrozenRecipe):
            raise UserError(
                f"{config.name}: a {config.task} recipe trains the network; a module in memory can be"
                f" evaluated by {', '.join(_frozen_tasks())} (save it, and give the file to the others)"
            )
        store = config.store or Path(kept, "features")
        source = stack.enter_context(source_of(checkpoint, said or Given(), config.image.size))
        return run(config.model_copy(update={"store": store}), source, Path(kept))


def _frozen_tasks() -> list[str]:
    from carryover.transfer.tasks.config import TASKS
    from carryover.transfer.tasks.frozen.config import FrozenRecipe

    return [name for name in TASKS.names() if issubclass(TASKS.get(name), FrozenRecipe)]


def convert(
    path: PathLike,
    *,
    to: str,
    out: PathLike,
    encoder: str | None = None,
    stated: "Stated | None" = None,
    against: PathLike | None = None,
) -> "Receipt":
    """Convert a checkpoint for another library and verify it; see `carryover.transfer.convert.convert`."""
    from carryover.transfer.convert import convert as run

    reference = None if against is None else Path(against)
    return run(Path(path), to, Path(out), encoder, None, stated, reference)


def inspect(path: PathLike, *, encoder: str | None = None, stated: "Stated | None" = None) -> "Inspection":
    """Return the maker of a checkpoint, what was read of it, and the fate of every tensor.

    Raises UserError naming the tensor for a file whose backbone could not be carried whole.
    """
    from carryover.core.backbones.remembered import look_into

    return look_into(Path(path), encoder, stated)


def read_results(*runs: PathLike) -> "pd.DataFrame":
    """Read the result records below run directories (or files) as one tidy frame, a row per metric.

    Records that cannot be read are named in warnings, and left out. Those of stages that a run's pipeline no
    longer names are left out as well.
    """
    from carryover.transfer.results.reading import read_records, to_frame

    records, problems = read_records([Path(run) for run in runs])
    for problem in problems:
        log.warning("%s: left out: %s", problem.path, problem.reason)
    return to_frame(records)
