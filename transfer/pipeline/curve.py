"""`carryover curve` as a pipeline: checkpoints x recipes x shares of one's own labels x seeds."""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from carryover.configs import UserError, load
from carryover.configs.keys import valid_keys
from carryover.configs.loading import validate
from carryover.core.formats.backbone import BackboneConfig
from carryover.transfer.pipeline.calls import BACKBONE
from carryover.transfer.pipeline.config import PipelineConfig

log = logging.getLogger(__name__)

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
RECIPES = ("small_knn", "small_linear", "small_finetune")
RECIPES_ON_A_CPU = ("small_knn", "small_linear", "small_finetune_cpu")
RANDOM, SUPERVISED = "random", "supervised"
_DENSE = ("detection", "segmentation")


@dataclass(frozen=True)
class Asked:
    """Inputs of a curve.

    Attributes
    ----------
    checkpoints
        Files of any known maker; each is a line.
    recipes
        Evaluation recipes, by name or file: of classification, detection or segmentation.
    shares
        Parts of the training images whose labels are used, ascending.
    seeds
        How many draws of labels (and trainings) there are of every point.
    supervised
        A supervised checkpoint to compare with; None: none, unless one is trained.
    train_supervised
        Whether a network is trained on all labels of the training images (classification only).
    overrides
        Keys of the evaluation recipes; each goes to the recipes that have it.
    """

    checkpoints: tuple[Path, ...]
    recipes: tuple[str, ...] = RECIPES
    shares: tuple[float, ...] = SHARES
    seeds: int = 3
    supervised: Path | None = None
    train_supervised: bool = False
    overrides: tuple[str, ...] = ()


@dataclass
class _Laid:
    """The entries so far, and what was left out, in words."""

    evaluate: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def curve(asked: Asked) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the pipeline of a curve as plain data (checked), and which points it leaves out and why.

    Random initialization of the first checkpoint's network is always a line. The labels of one seed are
    nested: those of 1 % are among those of 2 %, class by class.

    Raises
    ------
    UserError
        No checkpoint, a checkpoint or recipe that cannot be read, an override that no recipe has, or data
        without a point to evaluate.
    """
    if not asked.checkpoints:
        raise UserError("curve: give at least one checkpoint")
    asked = replace(asked, overrides=tuple(_anchored(override) for override in asked.overrides))
    recipes = [_Recipe.of(name, asked.overrides) for name in asked.recipes]
    _require_known(asked, recipes)
    laid = _Laid()
    for recipe in recipes:
        _add(laid, recipe, asked)
    if not laid.evaluate:
        raise UserError(f"curve: nothing to evaluate: {'; '.join(laid.left_out)}")
    given: list[dict[str, Any]] = [
        {"path": str(path.expanduser().absolute()), "label": label}
        for path, label in zip(asked.checkpoints, _labels(asked.checkpoints))
    ]
    if asked.supervised is not None:
        path = str(asked.supervised.expanduser().absolute())
        given.append({"path": path, "label": SUPERVISED, "method": SUPERVISED})
    plain = {
        "checkpoints": given,
        "pretrain": list(_pretrainings(asked, recipes)),
        "convert": ["canonical"],
        "evaluate": laid.evaluate,
        "report_title": "What pretraining saves in labels",
    }
    validate(PipelineConfig, {**plain, "name": "curve"}, "carryover curve")
    return plain, tuple(laid.left_out)


@dataclass(frozen=True)
class _Recipe:
    """An evaluation recipe with the overrides that it takes."""

    name: str
    overrides: tuple[str, ...]
    config: Any

    @classmethod
    def of(cls, name: str, overrides: Sequence[str]) -> "_Recipe":
        own = load("transfer", name)
        keys = valid_keys(type(own))
        taken = tuple(o for o in overrides if _key(o) in keys or len(overrides) == 0)
        taken += _splits(own, taken)
        return cls(name, taken, load("transfer", name, taken))

    @property
    def dense(self) -> bool:
        """Return whether it trains a detector or segmenter."""
        return self.config.task in _DENSE


def _labels(checkpoints: Sequence[Path]) -> list[str]:
    """Call every checkpoint after its file, or after its folder where the file's name says nothing."""
    stems = [path.stem for path in checkpoints]
    plain = Path(BACKBONE).stem
    found: list[str] = []
    for path, stem in zip(checkpoints, stems):
        name = path.absolute().parent.name if stem == plain or stems.count(stem) > 1 else stem
        label = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).lstrip("_.-") or "checkpoint"
        taken = sum(other == label or other.startswith(f"{label}-again") for other in found)
        found.append(f"{label}-again{taken}" if taken or label in (RANDOM, SUPERVISED) else label)
    return found


def _anchored(override: str) -> str:
    """Return an override with the data's root made absolute: the pipeline may be run from anywhere."""
    key, equals, value = override.partition("=")
    if key != "data.root" or not equals:
        return override
    return f"{key}={Path(value).expanduser().absolute()}"


def _key(override: str) -> str:
    return override.partition("=")[0]


def _require_known(asked: Asked, recipes: Sequence[_Recipe]) -> None:
    taken = {o for recipe in recipes for o in recipe.overrides}
    for override in asked.overrides:
        if override not in taken:
            # Said as the first recipe says it, with the nearest key.
            load("transfer", asked.recipes[0], [override])


def _splits(config: Any, overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides that name the splits of the existing folders, if none are stated."""
    said = {_key(o) for o in overrides}
    root = next((o.partition("=")[2] for o in overrides if _key(o) == "data.root"), None)
    drawn = getattr(getattr(config, "data", None), "splits", None)
    if root is None or not drawn or any(k.startswith(("data.split", "data.test_split")) for k in said):
        return ()
    folder = Path(root).expanduser()
    if getattr(config.data, "kind", "") != "imagefolder" or not (folder / "train").is_dir():
        return ()
    for name in ("test", "val", "validation", "valid"):
        if (folder / name).is_dir():
            return ("data.splits=null", "data.split=train", f"data.test_split={name}")
    return ()


def _add(laid: _Laid, recipe: _Recipe, asked: Asked) -> None:
    """Add the points of one recipe; those that the data cannot give are left out, and said."""
    counts = None if recipe.dense else _per_class(recipe)
    for share in sorted(set(asked.shares)):
        percent = f"{100 * share:g}"
        problem = "" if counts is None else _problem(recipe, counts, share)
        if problem:
            laid.left_out.append(f"{recipe.name} with {percent} % of the labels: {problem}")
            continue
        if recipe.dense:
            own = [f"label_fraction={share}"]
        else:
            own = [f"labels={{name: fraction, fraction: {share}}}"]
        # Every label is one draw, and nothing is trained: further seeds would say the same.
        alike = recipe.config.task == "knn" and share == 1
        laid.evaluate.append(
            {
                "recipe": _reference(recipe.name),
                "label": f"{_stem(recipe.name)}-{percent.replace('.', '_')}pct",
                "seeds": [0] if alike else list(range(asked.seeds)),
                "overrides": [*recipe.overrides, *own],
            }
        )


def _per_class(recipe: _Recipe) -> list[int]:
    """Count the training images of every class; raises UserError where they cannot be read."""
    from carryover.core.data.labelled.images import LabeledImages

    labels = LabeledImages(recipe.config.data).splits.train_labels
    return [labels.count(c) for c in sorted(set(labels))]


def _problem(recipe: _Recipe, counts: Sequence[int], share: float) -> str:
    """Return why a share of the labels is too small for a recipe; "" where it is not."""
    from carryover.core.data.labelled.subsets import take_fraction

    labels = [c for c, n in enumerate(counts) for _ in range(n)]
    classes = [str(c) for c in range(len(counts))]
    try:
        chosen = take_fraction(labels, classes, share, 0)
    except UserError:
        return "some class would have no labeled image"
    of_each = [sum(1 for i in chosen if labels[i] == c) for c in range(len(counts))]
    config = recipe.config
    if config.task == "knn" and max(config.k) > len(chosen):
        return f"{max(config.k)} neighbors of {len(chosen)} labeled images"
    if config.task == "linear" and min(of_each) < 2:
        return "some class would have a single labeled image, and the classifier is chosen on others"
    return ""


def _pretrainings(asked: Asked, recipes: Sequence[_Recipe]) -> Iterator[dict[str, Any]]:
    """Yield random initialization, and a supervised pretraining where one is to be trained."""
    from carryover.core.backbones.importers import take_backbone

    about = take_backbone(asked.checkpoints[0]).metadata
    shown = [f"augment.mean={list(about.pixel_mean)}", f"augment.std={list(about.pixel_std)}"]
    network = [*_backbone(about.backbone), *shown]
    yield {
        "recipe": "random_r50",
        "label": RANDOM,
        "overrides": [*network, f"augment.view.size={about.input_size}"],
    }
    if not asked.train_supervised:
        return
    labeled = [r for r in recipes if not r.dense]
    if asked.supervised is not None or not labeled:
        what = "detection and segmentation" if not labeled else "a supervised checkpoint that is given"
        raise UserError(f"--train-supervised: trains a classifier, which cannot be compared with {what}")
    first = labeled[0]
    data = [o for o in first.overrides if _key(o).startswith("data.") and _key(o) != "data.test_split"]
    splits = getattr(first.config.data, "splits", {})
    data += [f"data.splits={splits}"] if splits and not any("data.splits" in o for o in data) else []
    size = getattr(first.config.image, "size", about.input_size)
    yield {
        "recipe": "small_supervised",
        "label": SUPERVISED,
        "overrides": [*network, *data, f"augment.view.size={size}"],
    }


def _backbone(config: BackboneConfig) -> Iterator[str]:
    for key, value in config.stated().items():
        if value is not None:
            yield f"backbone.{key}={str(value).lower() if isinstance(value, bool) else value}"


def _reference(recipe: str) -> str:
    path = Path(recipe)
    return str(path.absolute()) if path.suffix in (".yaml", ".yml") else recipe


def _stem(recipe: str) -> str:
    return Path(recipe).stem if recipe.endswith((".yaml", ".yml")) else recipe
