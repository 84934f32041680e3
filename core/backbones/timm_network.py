"""Any of timm's models by name: its own network and names, with the interface that ours declare."""

import inspect
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from carryover.configs import UserError
from carryover.configs.nearest import nearest
from carryover.core.backbones.declared import InputRule
from carryover.core.backbones.light import without_compiler
from carryover.core.backbones.shapes_only import shapes_only
from carryover.core.backbones.transparent import Transparent
from carryover.core.formats.backbone import BackboneConfig

_VECTOR = re.compile(r"(?:(cls)(?:@(\d+))?)?(\+)?(mean)?")
# DINO's and DINOv2's choices for linear evaluation: the class token, the mean of the patches, both, and the
# class tokens of the last four blocks.
_VECTORS = ("cls", "mean", "cls+mean", "cls@4", "cls@4+mean")


class TimmNetwork(Transparent):
    """A model of timm without its classifier; see `declared.Declared`.

    Maps images (B, 3, H, W) to timm's own pooled features (B, feature_dim). `inner` is timm's model.
    """

    pools_last_stage = False

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(timms_model(config))
        facts = _facts(config)
        self.feature_dim, self.stages, self.strides, self.widths = facts[:4]
        self.patch_size, self.input_rule = facts[4:]
        prefix = getattr(self.inner, "num_prefix_tokens", None)
        tokens = self.patch_size is not None and prefix is not None
        self._class_token = tokens and bool(getattr(self.inner, "cls_token", None) is not None)
        self.vector_names = _VECTORS if self._class_token else ("mean",) if tokens else ()
        self.parts = _parts(self.inner, self.stages, self.strides)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.inner(x)
        return pooled

    def feature_maps(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps (B, C, H, W) after every stage, by timm's names of them, before the last norm."""
        return self.maps_of(x, self.stages)

    def maps_of(self, x: Tensor, stages: Sequence[str]) -> dict[str, Tensor]:
        """Return the maps of some stages, in the network's order; nothing after the last of them is run."""
        at = [index for index, name in enumerate(self.stages) if name in stages]
        found: list[Tensor] = _intermediates(self.inner)(
            x, indices=at, intermediates_only=True, stop_early=True
        )
        return dict(zip((self.stages[index] for index in at), found, strict=True))

    def vectors(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return pooled features (B, D) of a vision transformer by name, all after the last norm.

        "cls" is the class token, "mean" the mean of the patches, "cls+mean" both, "cls@4" the class tokens of
        the last four blocks, "cls@4+mean" these and the last block's mean: the choices of DINO's and DINOv2's
        linear evaluations.
        """
        asked = {name: _parsed(name) for name in names}
        blocks = max(count for count, _ in asked.values())
        layers: list[tuple[Tensor, Tensor]] = _intermediates(self.inner)(
            x,
            indices=max(blocks, 1),
            norm=True,
            output_fmt="NLC",
            return_prefix_tokens=True,
            intermediates_only=True,
        )
        mean = layers[-1][0].mean(dim=1)
        found = {}
        for name, (count, with_mean) in asked.items():
            parts = [prefix[:, 0] for _, prefix in layers[len(layers) - count :]] if count else []
            found[name] = torch.cat([*parts, mean], dim=1) if with_mean else torch.cat(parts, dim=1)
        return found

    def tokens(self, x: Tensor) -> Tensor:
        """Return the patches (B, N, D) of a vision transformer after the last norm."""
        (found,) = _intermediates(self.inner)(
            x, indices=1, norm=True, output_fmt="NLC", intermediates_only=True
        )
        patches: Tensor = found
        return patches

    def trunk(self, names: Mapping[str, str]) -> nn.Module:
        """Return the whole network, giving the maps of these stages."""
        return _Trunk(self, names)


class _Trunk(Transparent):
    def __init__(self, network: TimmNetwork, names: Mapping[str, str]) -> None:
        super().__init__(network)
        self.names = dict(names)
        for part in _after(network, names):
            # What is not run is not trained: it would have no gradients.
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        network: Any = self.inner
        maps: dict[str, Tensor] = network.maps_of(x, tuple(self.names))
        return {name: maps[stage] for stage, name in self.names.items()}


def model_name(config: BackboneConfig) -> str:
    """Return timm's name of the model, with its tag where one was given."""
    return config.arch.partition("/")[2]


def require_model(name: str) -> None:
    """Raise UserError with the nearest names where timm is not installed or has no such model."""
    timm = library()
    plain = name.partition(".")[0]
    if not timm.is_model(plain):
        guess = nearest(plain, timm.list_models())
        hint = f"; did you mean 'timm/{guess}'?" if guess else ""
        raise UserError(
            f"timm {timm.__version__} has no model called '{plain}'{hint} (`python -c 'import timm;"
            " print(timm.list_models())'` lists them)"
        )


def library() -> Any:
    """Return the module timm; raises UserError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with without_compiler():
                import timm
    except ImportError as error:
        raise UserError(f"timm's models need timm: pip install 'carryover-eval[timm]' ({error})") from None
    return timm


def pretrained_configuration(name: str) -> Mapping[str, Any]:
    """Return timm's own configuration of a model's weights: mean, deviation, input size, classifier."""
    found: Mapping[str, Any] = _bare(name).pretrained_cfg
    return found


def for_crops(config: BackboneConfig, side: int) -> BackboneConfig:
    """Return the config with positions for images of `side` pixels, where the model has positions.

    An input size that is given stays; so does the model's own where it is `side`.
    """
    name = model_name(config)
    require_model(name)
    if config.input_size is not None or "img_size" not in _parameters(name):
        return config
    own = pretrained_configuration(name)["input_size"][-1]
    return config if own == side else config.model_copy(update={"input_size": side})


def with_drop_path(config: BackboneConfig, rate: float) -> BackboneConfig:
    """Return the config with a stochastic depth, where timm's model has any."""
    known = _parameters(model_name(config))
    return config.model_copy(update={"drop_path": rate}) if "drop_path_rate" in known else config


def options_of(config: BackboneConfig) -> dict[str, Any]:
    """Return what `timm.create_model` is told besides the name."""
    known = _parameters(model_name(config))
    options: dict[str, Any] = {"num_classes": 0}
    if config.input_size is not None and "img_size" in known:
        options["img_size"] = config.input_size
    if "dynamic_img_size" in known:
        # Positions are interpolated, or windows masked, by timm where images are of another size.
        options["dynamic_img_size"] = True
    if config.patch_size is not None:
        if "patch_size" not in known:
            raise UserError(f"backbone.patch_size: timm's {config.label} has no patches; leave it out")
        options["patch_size"] = config.patch_size
    if config.pool is not None:
        options["global_pool"] = config.pool
    if config.heads is not None:
        options["num_heads"] = config.heads
    if config.drop_path is not None:
        options["drop_path_rate"] = config.drop_path
    if not config.tokens:
        if not {"class_token", "reg_tokens"} <= known:
            raise UserError(f"{config.label}: timm cannot build it without its class token and registers")
        options |= {"class_token": False, "reg_tokens": 0}
        if config.pool is None:
            # The last norm stays where it is.
            options |= {"global_pool": "avg", "fc_norm": False}
    return options


def timms_model(config: BackboneConfig) -> nn.Module:
    """Build timm's own model of a configuration; raises UserError where timm has none of that name."""
    name = model_name(config)
    require_model(name)
    model: nn.Module = library().create_model(name, pretrained=False, **options_of(config))
    return model


@cache
def _parameters(name: str) -> frozenset[str]:
    return frozenset(inspect.signature(type(_bare(name)).__init__).parameters)


@cache
def _bare(name: str) -> Any:
    """Return a model of timm as timm builds it, without a classifier and without values."""
    with shapes_only():
        return library().create_model(name, pretrained=False, num_classes=0)


@cache
def _facts(
    config: BackboneConfig,
) -> tuple[int, tuple[str, ...], tuple[int, ...], tuple[int, ...], int | None, InputRule]:
    """Return width, stages, strides, widths, patch size and input rule, found without any values."""
    with shapes_only():
        model: Any = timms_model(config).eval()
        side = config.input_size or model.pretrained_cfg["input_size"][-1]
        with torch.no_grad():
            images = torch.zeros(1, 3, side, side)
            width = model(images).shape[1]
            info = model.feature_info
            stages = [entry["module"] for entry in (info if isinstance(info, list) else info.info)]
            maps = _intermediates(model)(images, intermediates_only=True)
    if len(maps) != len(stages):
        raise UserError(f"{config.arch}: timm describes {len(stages)} stages but returns {len(maps)} maps")
    strides = tuple(side // found.shape[-1] for found in maps)
    patch = strides[0] if len(set(strides)) == 1 and hasattr(model, "patch_embed") else None
    fixed = bool(model.pretrained_cfg.get("fixed_input_size"))
    dynamic = bool(getattr(model, "dynamic_img_size", False)) or "dynamic_img_size" in options_of(config)
    rule = InputRule(side if fixed else None, patch or 1, any_size=dynamic or not fixed)
    return width, tuple(stages), strides, tuple(found.shape[1] for found in maps), patch, rule


def _intermediates(model: nn.Module) -> Any:
    own: Any = getattr(model, "forward_intermediates", None)
    if own is None:
        raise UserError(f"timm's {type(model).__name__} gives no maps of its stages (forward_intermediates)")
    return own


def _parts(model: nn.Module, stages: Sequence[str], strides: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the module names part by part: what comes before the first level, then each level."""
    children = [name for name, _ in model.named_children()]
    roots = [stage.partition(".")[0] for stage in stages]
    before = tuple(children[: children.index(roots[0])]) if roots[0] in children else ()
    levels = [tuple(s for s, r in zip(stages, strides) if r == stride) for stride in sorted(set(strides))]
    if min(strides) < 4:
        return (before + levels[0], *levels[1:])
    return (before, *levels)


def _after(network: TimmNetwork, stages: Collection[str]) -> list[nn.Module]:
    """Return the modules of a network that come after the last of these stages."""
    last = max(network.stages.index(stage) for stage in stages)
    children = dict(network.inner.named_children())
    place = list(children).index(network.stages[last].partition(".")[0])
    later = [network.get_submodule(stage) for stage in network.stages[last + 1 :]]
    return later + list(children.values())[place + 1 :]


def _parsed(name: str) -> tuple[int, bool]:
    match = _VECTOR.fullmatch(name)
    if not name or match is None or bool(match[3]) != bool(match[1] and match[4]):
        raise UserError(
            f"feature '{name}': a vision transformer has {', '.join(_VECTORS)} (or another number)"
        )
    return (int(match[2] or 1) if match[1] else 0), bool(match[4])
