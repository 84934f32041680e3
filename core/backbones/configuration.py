"""Configuration of a file: inside (mm-series, timm) or beside it (Detectron2, Hugging Face)."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from carryover.configs import UserError
from carryover.core.backbones.reading import Contents
from carryover.core.backbones.stated import Pixels, Stated, pixels_of
from carryover.core.formats.backbone import MOBILE, RESNETS
from carryover.core.formats.checkpoint_files import INDEX, checkpoint_file

_MM_TEXTS = ("meta.cfg", "meta.config")
# Of transformers' models: whose pretraining it is, where the network belongs to one.
_METHODS = {
    "vit_mae": "MAE",
    "vit_msn": "MSN",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2",
    "dinov3_vit": "DINOv3",
    "dinov3_convnext": "DINOv3",
    "ijepa": "I-JEPA",
    "beit": "BEiT",
}


def said_by_file(contents: Contents, path: Path, detectron2: bool) -> Stated:
    """Return what the configuration in a file or beside it says of the network and of its images.

    `detectron2` tells that the tensors are under Detectron2's names. Raises UserError for a configuration
    that contradicts itself.
    """
    for key in _MM_TEXTS:
        text = contents.configuration.get(key)
        if isinstance(text, str):
            return _mm(text, f"{path}: {key}")
    if detectron2:
        return _detectron2(path)
    if "mayaku.config.model.backbone.name" in contents.configuration:
        return _mayaku(contents, path)
    arch = contents.configuration.get("arch")
    if isinstance(arch, str) and arch not in (*RESNETS, *MOBILE) and _is_timms(arch):
        return Stated(architecture=f"timm/{arch}", where="'arch' of the file")
    file = checkpoint_file(path)
    beside = file.with_name("config.json")
    if beside.is_file() and file.name.endswith((".safetensors", ".bin", ".pth", ".pt", INDEX)):
        return _hugging_face(beside)
    return Stated()


def _mm(text: str, where: str) -> Stated:
    """Read mmengine's or mmcv's dump of a configuration, which is Python but is not run."""
    try:
        values = list(_keywords(ast.parse(text)))
    except SyntaxError:
        return Stated()
    found: dict[str, list[Any]] = {}
    for name, value in values:
        found.setdefault(name, []).append(value)

    def one(name: str) -> Any:
        different = list(dict.fromkeys(map(str, found.get(name, []))))
        if len(different) > 1:
            raise UserError(f"{where}: says {name} = {' and '.join(different)}; say which with --pixels")
        return found[name][0] if different else None

    style, order = found.get("style", [None])[0], None
    for flag in ("to_rgb", "bgr_to_rgb"):
        if (value := one(flag)) is not None:
            order = "RGB" if value else "BGR"
    mean, std, pixels = one("mean"), one("std"), None
    if isinstance(mean, list | tuple) and isinstance(std, list | tuple):
        # Images are decoded to BGR; the transform of old converts them unless told, the new one does not.
        order = order or ("BGR" if "data_preprocessor" in found else "RGB")
        pixels = pixels_of(tuple(mean), tuple(std), order, where)
    stride = None if style not in ("caffe", "pytorch") else style == "caffe"
    return Stated(stride_in_1x1=stride, pixels=pixels, where=where.rpartition(": ")[2] + " of the file")


def _keywords(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg is not None:
            pairs: list[tuple[Any, ast.expr]] = [(node.arg, node.value)]
        elif isinstance(node, ast.Dict):
            pairs = [(k.value, v) for k, v in zip(node.keys, node.values) if isinstance(k, ast.Constant)]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            pairs = [(node.targets[0].id, node.value)]
        else:
            continue
        for name, value in pairs:
            if name == "data_preprocessor":
                yield name, True
            try:
                yield str(name), ast.literal_eval(value)
            except ValueError:
                continue


def _mayaku(contents: Contents, path: Path) -> Stated:
    """Read the configuration that mayaku puts into its files: RGB images of 0..255."""
    said, model = contents.configuration, "mayaku.config.model"
    mean, std = (tuple(said.get(f"{model}.pixel_{kind}.{at}") for at in range(3)) for kind in ("mean", "std"))
    whole = all(isinstance(value, int | float) for value in (*mean, *std))
    stride = said.get(f"{model}.backbone.stride_in_1x1")
    convnext = str(said[f"{model}.backbone.name"]).startswith("convnext")
    return Stated(
        stride_in_1x1=stride if isinstance(stride, bool) and not convnext else None,
        pixels=pixels_of(mean, std, "RGB", f"{path}: {model}") if whole else None,  # type: ignore[arg-type]
        where="its own configuration ('mayaku')",
    )


def _detectron2(path: Path) -> Stated:
    beside = path.with_name("config.yaml")
    if not beside.is_file():
        return Stated()
    try:
        config = yaml.safe_load(beside.read_text())
        model, form = config["MODEL"], config["INPUT"]["FORMAT"]
        pixels = pixels_of(tuple(model["PIXEL_MEAN"]), tuple(model["PIXEL_STD"]), form, str(beside))
        return Stated(
            stride_in_1x1=bool(model["RESNETS"]["STRIDE_IN_1X1"]),
            pixels=pixels,
            where="config.yaml beside it",
        )
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        return Stated()


def _hugging_face(beside: Path) -> Stated:
    """Read timm's or transformers' config.json, and the preprocessor's beside it."""
    try:
        config = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Stated()
    if not isinstance(config, dict):
        return Stated()
    if "pretrained_cfg" in config:
        return _hugging_face_timm(config, beside)
    return _transformers(config, beside)


def _transformers(config: dict[str, Any], beside: Path) -> Stated:
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return Stated()
    shown = beside.with_name("preprocessor_config.json")
    pixels, size = _preprocessor(shown)
    heads = config.get("num_attention_heads")
    return Stated(
        stride_in_1x1=config.get("downsample_in_bottleneck") if kind == "resnet" else None,
        heads=heads if isinstance(heads, int) else None,
        pixels=pixels,
        input_size=size or (config["image_size"] if isinstance(config.get("image_size"), int) else None),
        method=_METHODS.get(kind),
        norm_eps=eps if isinstance(eps := config.get("layer_norm_eps"), float) else None,
        where="config.json beside it" + (f" and {shown.name}" if pixels else ""),
    )


def _preprocessor(path: Path) -> tuple[Pixels | None, int | None]:
    """Return statistics and side in pixels of what a preprocessor makes; None where it says none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        size: Any = found.get("crop_size") if found.get("do_center_crop") else None
        size = size or found.get("size")
        if isinstance(size, dict):
            size = size.get("height") or size.get("shortest_edge")
        side = size if isinstance(size, int) else None
        if not found.get("do_normalize", True):
            # Images of 0..1, or of 0..255 where they are not rescaled.
            return (Pixels((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)) if found.get("do_rescale", True) else None), side
        return pixels_of(tuple(found["image_mean"]), tuple(found["image_std"]), "RGB", str(path)), side
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, None


def _hugging_face_timm(config: dict[str, Any], beside: Path) -> Stated:
    try:
        cfg, name = config["pretrained_cfg"], config["architecture"]
        mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    except (KeyError, TypeError):
        return Stated()
    return Stated(
        architecture=f"timm/{name}",
        pixels=pixels_of(mean, std, "RGB", str(beside)),
        input_size=int(cfg["input_size"][-1]) if "input_size" in cfg else None,
        where="config.json beside it",
    )


def _is_timms(arch: str) -> bool:
    from carryover.core.backbones.timm_network import library

    try:
        return bool(library().is_model(arch))
    except UserError:
        return False
