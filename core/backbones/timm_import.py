"""Somebody's tensors under timm's names, by timm's own checkpoint filters; every tensor is followed."""

import math
import re
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.core.backbones.architecture import expected_tensors, is_counter, listed
from carryover.core.backbones.huggingface import ANCHORS, by_authors_names
from carryover.core.backbones.shapes_only import shapes_only
from carryover.core.backbones.timm_network import library, model_name, options_of, require_model
from carryover.core.backbones.traced import traced, without_values
from carryover.core.formats.backbone import BackboneConfig

Filter = Callable[..., Mapping[str, Tensor]]

# What lies on top of a backbone, or beside it for pretraining only.
_ON_TOP = (
    "head.",
    "head_dist.",
    "heads.",
    "fc.",
    "classifier.",
    "decoder",
    "mask_token",
    "pre_logits.",
    "projector",
    "projection",
    "predictor",
    "prototypes",
    "dino_head.",
    "ibot_head.",
    "norms.",
    "local_cls_norm.",
    "proj.",
    "pooler.dense.",
)
# The norm over pooled features, which ConvNeXt V2's masked autoencoders do not have.
_LAST_NORM = {"head.norm.weight": 1.0, "head.norm.bias": 0.0}


@dataclass(frozen=True)
class Filtered:
    """Tensors of one encoder under timm's names.

    Attributes
    ----------
    config
        The network, with the input size that the file's positions are for.
    state
        By timm's names, of the file's own types, without values (`filled` gives those).
    became
        Which tensors every source tensor is part of: timm's names, none where it was left out.
    added
        Names of the tensors that the file lacks and that were set to what a new last norm is.
    counters
        Batch norms' counters that the file lacks (frozen norms have none), set to 0.
    """

    config: BackboneConfig
    state: Mapping[str, Tensor]
    became: Mapping[str, tuple[str, ...]]
    added: tuple[str, ...]
    counters: tuple[str, ...] = ()


def fitted(raw: Mapping[str, Tensor], config: BackboneConfig, where: str) -> Filtered:
    """Return tensors `raw` as those of the timm model of `config`.

    Raises UserError, naming the tensors, where the model has tensors that are not there, or the file has
    tensors of the backbone that the model does not have.
    """
    config = _sized(by_authors_names(without_values(raw)), config)
    model, own = _model_and_filter(config)
    made = traced(lambda given: _run(own, given, model, where), raw)
    expected, state = expected_tensors(config), dict(made.tensors)
    added = tuple(n for n in _LAST_NORM if n in expected and not any(m in state for m in _LAST_NORM))
    counters = tuple(n for n in expected if is_counter(n) and n not in state)
    for name in (*added, *counters):
        state[name] = torch.empty(expected[name].shape, dtype=expected[name].dtype, device="meta")
    foreign = [n for n in state if n not in expected and not _is_on_top(n)]
    missing = [n for n in expected if n not in state]
    if foreign or missing:
        parts = [f"without {listed(missing)}"] if missing else []
        parts += [f"with {listed(foreign)}, which the model does not have"] if foreign else []
        raise UserError(
            f"{where}: not {config.arch}: {' and '.join(parts)}; say which model it is with --architecture"
        )
    kept = {name: state[name] for name in expected}
    became = {name: tuple(n for n in kept if name in made.sources.get(n, ())) for name in raw}
    lost = [n for n, to in became.items() if not to and _takes_part(n) and _is_not_zero(raw[n])]
    if lost:
        raise UserError(
            f"{where}: not {config.arch}: it has no place for {listed(lost)}, which are not zero; say which"
            " model it is with --architecture"
        )
    anew = [
        n for n in kept if n not in (*added, *counters) and (n in made.resampled or not made.sources.get(n))
    ]
    if anew := [n for n in anew if kept[n].is_floating_point()]:
        raise UserError(
            f"{where}: not {config.arch}: {listed(anew)} would have to be resampled to another size; say"
            " which model it is with --architecture"
        )
    return Filtered(config, kept, became, added, counters)


def filled(filtered: Filtered, raw: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the tensors of `filtered`, which was found for `raw`, with their values."""
    model, own = _model_and_filter(filtered.config)
    state = _run(own, dict(raw), model, where)
    state |= {n: torch.full(filtered.state[n].shape, _LAST_NORM[n]) for n in filtered.added}
    state |= {n: torch.zeros_like(filtered.state[n], device="cpu") for n in filtered.counters}
    return {name: state[name] for name in filtered.state}


def anchors_of(config: BackboneConfig) -> tuple[str, ...]:
    """Return the names, timm's and the authors', of a first tensor by which an encoder is found in a file."""
    model, _ = _model_and_filter(config)
    first: Any = model.pretrained_cfg.get("first_conv") or ()
    ours = [first] if isinstance(first, str) else list(first)
    authors = ["downsample_layers.0.0.weight", "features.0.0.weight", *ANCHORS]
    if "clip" in config.arch:
        # OpenAI's files: the image tower's names are told from the text tower's by their prefix.
        authors.append("visual.conv1.weight")
    return tuple(dict.fromkeys([*(f"{name}.weight" for name in ours), *authors]))


def own_heads(config: BackboneConfig) -> int | None:
    """Return how many attention heads timm's model has unless it is told; None where it has none."""
    model, _ = _model_and_filter(config.model_copy(update={"heads": None}))
    return next(
        (int(m.num_heads) for m in model.modules() if isinstance(getattr(m, "num_heads", None), int)), None
    )


def own_norm_eps(config: BackboneConfig) -> float | None:
    """Return the epsilon of timm's model's layer norms; None where it has none."""
    model, _ = _model_and_filter(config)
    return next((m.eps for m in model.modules() if isinstance(m, nn.LayerNorm) and m.eps), None)


def children_of(config: BackboneConfig) -> tuple[str, ...]:
    """Return the names of a timm model's own modules."""
    return tuple(name for name, _ in _model_and_filter(config)[0].named_children())


def _is_on_top(name: str) -> bool:
    return name.startswith(_ON_TOP) and name not in _LAST_NORM


def _takes_part(name: str) -> bool:
    """Return whether a tensor that a filter leaves out would be computed with: the biases of an attention."""
    return not _is_on_top(name) and re.search(r"\.(qkv|query|value|q_proj|v_proj)\.bias$", name) is not None


def _is_not_zero(value: Tensor) -> bool:
    return not value.is_meta and bool(value.any())


def _sized(raw: Mapping[str, Tensor], config: BackboneConfig) -> BackboneConfig:
    """Return the config with tokens and input size of the file's positions, and its last norm's pooling."""
    if "fc_norm.weight" in raw and "norm.weight" not in raw and config.pool is None:
        config = config.model_copy(update={"pool": "avg"})
    positions = raw.get("pos_embed")
    if positions is None or positions.ndim != 3:
        return config
    model, _ = _model_and_filter(config)
    alone = math.isqrt(positions.shape[1]) ** 2 == positions.shape[1] and "cls_token" not in raw
    if alone and config.tokens and getattr(model, "cls_token", None) is not None:
        config = config.model_copy(update={"tokens": False})
    grid: Any = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    patch_size: Any = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if grid is None or patch_size is None:
        return config
    for tokens in dict.fromkeys((1, 0, int(getattr(model, "num_prefix_tokens", 1)))):
        side = math.isqrt(max(positions.shape[1] - tokens, 0))
        if side and side * side == positions.shape[1] - tokens:
            size = side * int(patch_size[0])
            same = (side, side) == tuple(grid)
            return config if same else config.model_copy(update={"input_size": size})
    return config


@cache
def _model_and_filter(config: BackboneConfig) -> tuple[Any, Filter | None]:
    """Return a timm model without values, and the filter that timm itself puts its checkpoints through."""
    timm, name = library(), model_name(config)
    require_model(name)
    seen: list[Filter | None] = []

    def instead(model: nn.Module, *_: object, filter_fn: Filter | None = None, **__: object) -> None:
        seen.append(filter_fn)

    # timm keeps a model's filter to itself; where it would load weights it has it in its hand.
    with patch.object(timm.models._builder, "load_pretrained", instead), shapes_only():
        model = timm.create_model(name, pretrained=True, **options_of(config))
    return model, (seen[0] if seen else None)


def _run(own: Filter | None, raw: dict[str, Tensor], model: nn.Module, where: str) -> dict[str, Tensor]:
    raw = by_authors_names(raw)
    if own is None:
        return raw
    try:
        # Some of timm's filters print.
        with redirect_stdout(StringIO()):
            try:
                return dict(own(raw, model))
            except TypeError:
                return dict(own(raw))
    except (KeyError, RuntimeError, ValueError, AttributeError, IndexError, AssertionError) as error:
        raise UserError(
            f"{where}: timm's filter for {type(model).__name__} cannot read these tensors"
            f" ({type(error).__name__}: {error})"
        ) from None


def without_tag(config: BackboneConfig) -> BackboneConfig:
    """Return the config by the model's name without the tag of its weights."""
    return config.model_copy(update={"arch": config.arch.partition(".")[0]})


def candidates(raw: Mapping[str, Tensor], names: tuple[str, ...], where: str | Path) -> list[Filtered]:
    """Return as which of timm's models `names` some tensors can be taken, by names and shapes."""
    found = []
    for name in names:
        try:
            filtered = fitted(raw, BackboneConfig(arch=f"timm/{name}"), str(where))
        except UserError:
            continue
        expected = expected_tensors(filtered.config)
        if all(filtered.state[n].shape == spec.shape for n, spec in expected.items()):
            found.append(filtered)
    return found
