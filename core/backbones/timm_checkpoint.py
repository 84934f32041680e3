"""Somebody's file taken as one of timm's models: named by its user or configuration, or recognized."""

from pathlib import Path

from carryover.configs import UserError
from carryover.core.backbones.architecture import check_whole
from carryover.core.backbones.assumptions import Resolved, assume_pixels, metadata_of
from carryover.core.backbones.huggingface import by_authors_names
from carryover.core.backbones.imported import (
    Imported,
    as_float32,
    choice_in_words,
    conversions_in_words,
    fates_of,
    looked_through,
)
from carryover.core.backbones.makers import Encoder, choose, maker_of, own_encoders
from carryover.core.backbones.reading import Contents
from carryover.core.backbones.recognition import the_one, usual_models, usual_resnets
from carryover.core.backbones.stated import Stated, pixels_of
from carryover.core.backbones.timm_import import (
    Filtered,
    anchors_of,
    children_of,
    filled,
    fitted,
    own_heads,
    own_norm_eps,
    without_tag,
)
from carryover.core.backbones.timm_network import library, pretrained_configuration
from carryover.core.backbones.timm_own import TimmsOwn
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata

# Their authors' vision transformers have as many heads as timm's.
_TIMMS_HEADS = frozenset({"DINO", "iBOT", "MAE", "DINOv2", "I-JEPA"})
# Those of a maker whose transformers have not, by timm's model (Chen et al. 2021; vits.py of MoCo v3).
_AUTHORS_HEADS = {
    ("MoCo v3", "timm/vit_small_patch16_224"): 12,
    ("MoCo v3", "timm/vit_base_patch16_224"): 12,
}


def take_as(
    path: Path,
    contents: Contents,
    told: Stated,
    encoder: str | None,
    embedded: CanonicalMetadata | None,
    values: bool = True,
    renamed: tuple[Encoder, ...] = (),
) -> Imported:
    """Take a file as the model of timm that `told.architecture` names.

    `renamed` are encoders that were found under another library's names of a ResNet, and have timm's now.
    Raises UserError naming the tensors for which the model has no place, or which it has and the file lacks.
    """
    assert told.architecture is not None
    try:
        named = BackboneConfig(arch=told.architecture, heads=told.heads)
    except ValueError as error:
        raise UserError(f"--architecture {told.architecture}: {error}") from None
    if embedded is not None:
        named = embedded.backbone
    anchors, children = anchors_of(without_tag(named)), children_of(without_tag(named))
    found = renamed or own_encoders(contents, anchors, children)
    if not found:
        wanted = ", ".join(f"'{name}'" for name in anchors)
        raise UserError(f"{path}: not {named.arch}: no tensor is called {wanted}, whatever the prefix")
    chosen = choose(found, encoder, contents, path)
    raw = {name: contents.tensors[full] for name, full in chosen.tensors.items()}
    filtered = fitted(raw, without_tag(named), _where(path, chosen))
    return _imported(path, contents, told, chosen, found, filtered, embedded, named.arch, values)


def take_recognized(
    path: Path,
    contents: Contents,
    told: Stated,
    found: tuple[Encoder, ...],
    encoder: str | None,
    embedded: CanonicalMetadata | None,
    values: bool = True,
) -> Imported:
    """Take a file as the one of timm's usual models that its tensors fit by names and shapes.

    Raises UserError where none fits, listing them where several do.
    """
    chosen = choose(found, encoder, contents, path)
    raw = {name: contents.tensors[full] for name, full in chosen.tensors.items()}
    names, where = usual_models(raw), _where(path, chosen)
    filtered = the_one(raw, names, where)
    if filtered is None:
        tried = f" (tried {', '.join(names)})" if names else ""
        kind = (
            "a vision transformer" if any(".attn." in name for name in raw) else "a network of another kind"
        )
        if names:
            try:
                library()
            except UserError as error:
                raise UserError(f"{where}: {kind}; {error}") from None
        raise UserError(
            f"{where}: {kind} that none of the usual models fits{tried}; name the model of timm:"
            " --architecture timm/NAME"
        )
    heads = told.heads
    if heads is None and embedded is None:
        heads = _AUTHORS_HEADS.get((maker_of(chosen, contents), filtered.config.arch))
    if heads not in (None, own_heads(filtered.config)):
        filtered = fitted(raw, filtered.config.model_copy(update={"heads": heads}), where)
    return _imported(path, contents, told, chosen, found, filtered, embedded, None, values)


def take_variant(
    path: Path,
    contents: Contents,
    told: Stated,
    chosen: Encoder,
    found: tuple[Encoder, ...],
    embedded: CanonicalMetadata | None,
    values: bool = True,
) -> Imported | None:
    """Take a ResNet that is no plain one as timm's (ResNeXt, Wide, deep stems, GroupNorm); None if none fits.

    Raises UserError listing the models where several fit, and where it is said to stride as none does.
    """
    if chosen.scheme not in ("torchvision", "mayaku"):
        return None
    raw = {name: contents.tensors[full] for name, full in chosen.tensors.items()}
    names = usual_resnets(raw)
    filtered = the_one(raw, names, _where(path, chosen)) if names else None
    if filtered is None:
        return None
    if told.stride_in_1x1:
        raise UserError(
            f"{path}: {filtered.config.arch} strides in its 3x3 convolutions, not in the 1x1 ({told.where})"
        )
    return _imported(path, contents, told, chosen, found, filtered, embedded, None, values)


def _where(path: Path, chosen: Encoder) -> str:
    return f"{path} (under '{chosen.prefix}')" if chosen.prefix else str(path)


def _imported(
    path: Path,
    contents: Contents,
    told: Stated,
    chosen: Encoder,
    found: tuple[Encoder, ...],
    filtered: Filtered,
    embedded: CanonicalMetadata | None,
    named: str | None,
    values: bool,
) -> Imported:
    where, raw = _where(path, chosen), {n: contents.tensors[full] for n, full in chosen.tensors.items()}
    notes = [choice_in_words(chosen, found)] if len(found) > 1 else []
    notes += contents.notes
    taken = filled(filtered, raw, where) if values else filtered.state
    state = {name: as_float32(name, value) for name, value in taken.items()}
    check_whole(state, filtered.config, where, finite=False)
    of_model = {n: raw[n] for n, to in filtered.became.items() if to}
    said, new = looked_through(contents, of_model, where, values)
    notes += said
    maker = maker_of(chosen, contents)
    resolved = _resolved(filtered, told, maker, named)
    metadata = embedded or metadata_of(resolved, maker, chosen, contents, told)
    carried, reasons = {}, {}
    for name, targets in filtered.became.items():
        if targets:
            carried[chosen.tensors[name]] = " + ".join(targets)
        else:
            reasons[chosen.tensors[name]] = f"no part of {filtered.config.arch} (head, decoder or mask token)"
    notes += conversions_in_words(filtered.state, filtered.counters)
    own_eps = own_norm_eps(filtered.config)
    if told.norm_eps is not None and own_eps not in (None, told.norm_eps):
        notes.append(
            f"config.json gives the norms an epsilon of {told.norm_eps:g}; timm's, as the authors' of BEiT,"
            f" DeiT and MAE, have {own_eps:g}: features differ from transformers' own by about 1e-4"
        )
    return Imported(
        state=state,
        metadata=metadata.model_copy(update={"backbone": filtered.config}),
        layout=contents.layout,
        encoder=chosen.role,
        alternatives=tuple(f"{e.role} at '{e.prefix}'" for e in found if e is not chosen),
        fates=fates_of(contents, chosen, found, carried, reasons),
        filled=filtered.counters,
        notes=(*notes, *([f"by {told.where}"] if told.where else [])),
        own=_own(contents, chosen, filtered, named)
        if values and embedded is None and named is not None
        else None,
        new=new if embedded is None else "",
    )


def _own(contents: Contents, chosen: Encoder, filtered: Filtered, named: str) -> TimmsOwn:
    raw = {name: contents.tensors[full] for name, full in chosen.tensors.items()}
    return TimmsOwn(named.removeprefix("timm/"), filtered.config, by_authors_names(raw))


def _resolved(filtered: Filtered, told: Stated, maker: str, named: str | None) -> Resolved:
    config, assumed = filtered.config, dict[str, str]()
    name = config.arch.removeprefix("timm/")
    cfg = pretrained_configuration((named or config.arch).removeprefix("timm/"))
    pixels = told.pixels
    if pixels is None and named is not None and "." in named:
        # The tag names the very weights: timm says what they were trained on.
        pixels = pixels_of(tuple(cfg["mean"]), tuple(cfg["std"]), "RGB", named)
    if pixels is None:
        pixels = assume_pixels(assumed)
    known = maker in _TIMMS_HEADS or (maker, config.arch) in _AUTHORS_HEADS
    if named is None and told.heads is None and name.startswith("vit_") and not known:
        assumed["heads"] = (
            f"timm/{name} as timm has it, by names and shapes, which do not tell its attention heads"
            " (--heads)"
        )
    if named is None and name.startswith(("resnet", "resnext", "wide_resnet")):
        assumed["network"] = (
            f"timm/{name}, by names and shapes; timm's anti-aliased models of these sizes (resnetaa,"
            " resnetblur) have the same (--architecture)"
        )
    if filtered.added:
        assumed["norm"] = "no norm after the last stage in the file: one without weights (head.norm)"
    if told.input_size is None:
        size = config.input_size or cfg["input_size"][-1]
        assumed["input_size"] = f"trained on crops of {size} px (--input-size)"
    return Resolved(config, pixels, assumed)
