"""Configuration of a file: inside (mm-series, timm) or beside it (Detectron2, Hugging Face)."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from carryover.configs import UserError
from carryover.core.backbones.reading import Contents
from carryover.core.backbones.stated import Stated, pixels_of
from carryover.core.formats.backbone import MOBILE, RESNETS

_MM_TEXTS = ("meta.cfg", "meta.config")
_BESIDE = ("config.yaml", "config.json")


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
    arch = contents.configuration.get("arch")
    if isinstance(arch, str) and arch not in (*RESNETS, *MOBILE) and _is_timms(arch):
        return Stated(architecture=f"timm/{arch}", where="'arch' of the file")
    beside = path.with_name("config.json")
    if beside.is_file() and path.suffix in (".safetensors", ".bin", ".pth", ".pt"):
        return _hugging_face_timm(beside)
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


def _hugging_face_timm(beside: Path) -> Stated:
    try:
        config = json.loads(beside.read_text())
        cfg, name = config["pretrained_cfg"], config["architecture"]
        mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    except (ValueError, KeyError, TypeError):
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
