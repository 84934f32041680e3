"""Problems of a pipeline that are found while planning, rather than by a failing job."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carryover.configs import UserError
from carryover.core.backbones.inspected import with_said
from carryover.core.backbones.pixels import TrainedOn, require_same_crops, require_same_pixels
from carryover.core.backbones.remembered import look_into
from carryover.core.backbones.stated import Stated
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.said import Said

if TYPE_CHECKING:
    from carryover.core.formats.canonical import CanonicalMetadata

_DENSE = ("detection", "segmentation")
_ORDINARY = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def refuse_unfit(where: str, backbone: BackboneConfig, to: Sequence[str], recipes: Iterable[Any]) -> None:
    """Raise UserError if a backbone cannot be carried into a library of `to`, or judged by one of `recipes`.

    `where` names the pretraining or checkpoint that it comes from.
    """
    ordinary = backbone.arch in _ORDINARY and backbone.stem == "imagenet" and backbone.width == 1
    if ordinary:
        return
    # Imports torch: only an unusual backbone has to wait for it.
    from carryover.core.backbones.description import describe
    from carryover.transfer.convert import TARGETS

    for recipe in recipes:
        described = describe(backbone)
        if recipe.task in _DENSE and not described.hierarchical and described.patch_size is None:
            raise UserError(
                f"{where}: {_described(backbone)} does not fit the {recipe.task} of evaluate: {recipe.name}, "
                "which needs stages of strides 4 to 32: pretrain with backbone.stem=imagenet, "
                "or name under the evaluation's `of:` the pretrainings that it is for"
            )

        _refuse_detector(where, backbone, recipe)

    for target in to:
        try:
            TARGETS.get(target).require(backbone)
        except UserError as error:
            raise UserError(
                f"{where}: {_described(backbone)} cannot be converted for convert: {target} ({error}); "
                "set convert=[canonical] to verify only that the checkpoint is complete"
            ) from None


def _refuse_detector(where: str, backbone: BackboneConfig, recipe: Any) -> None:
    """Raise UserError for a detector or segmenter that cannot be built on a backbone, whatever its stages."""
    from carryover.transfer.tasks.detection.pyramid import require_detectable
    from carryover.transfer.tasks.segmentation.maps import require_segmentable

    try:
        if recipe.task == "detection" and recipe.backend == "torchvision":
            require_detectable(backbone, recipe.model)
        elif recipe.task == "segmentation":
            require_segmentable(backbone, recipe.model, recipe.input.crop_size)
    except UserError as error:
        raise UserError(f"{where}: cannot be evaluated by evaluate: {recipe.name} ({error})") from None


def refuse_other_pixels(where: str, trained_on: TrainedOn, recipes: Iterable[Any]) -> None:
    """Raise UserError if a recipe feeds a checkpoint images of another size or normalization than its own.

    `where` names the pretraining or checkpoint; every evaluation would fail of it, after the training.
    """
    for recipe in recipes:
        try:
            if hasattr(getattr(recipe, "image", None), "input_size"):
                require_same_crops(recipe.image, trained_on, _called(where))
            elif hasattr(getattr(recipe, "input", None), "channel_order"):
                require_same_pixels(recipe.input, trained_on, _called(where))
        except UserError as error:
            raise UserError(f"evaluate: {recipe.name}: {error}") from None


def _called(where: str) -> str:
    """Return what messages call the checkpoint of a pretraining, or one that was given."""
    kind, _, name = where.partition(": ")
    return f"checkpoint {name}" if kind == "checkpoints" else f"the checkpoint of {where}"


def read_metadata(path: Path, encoder: str | None, said: Said) -> "CanonicalMetadata":
    """Return the content of a checkpoint of any known maker, and the statements about it.

    Raises UserError when no backbone is whole in it, or it says otherwise itself.
    """
    # A network that was never trained is taken where its method is said to be that.
    known = None if said.method is None else Stated(method=said.method)
    return with_said(look_into(path, encoder, known).metadata, said, path)


def explain_missing(paths: Mapping[Path, Sequence[str]], roots: Mapping[str, str]) -> list[str]:
    """Return for each path that does not exist which `roots` override gives it, and what needs it."""
    lines = []
    for path, stages in paths.items():
        names = [n for n, root in roots.items() if Path(root).expanduser().absolute() == path]
        how = f"give roots.{names[0]}=DIRECTORY" if names else "the recipe's overrides say where it lies"
        more = f" and {len(stages) - 1} more" if len(stages) > 1 else ""
        lines.append(f"{path}: no such directory ({how}); needed by {stages[0]}{more}")
    return lines


def _described(backbone: BackboneConfig) -> str:
    stem = "" if backbone.stem == "imagenet" else f" with the {backbone.stem} stem"
    return f"its {backbone.label}{stem}"
