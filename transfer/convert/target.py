"""Interface of target libraries: one conversion serves all of them."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue
from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.imported import Imported
from carryover.core.backbones.verify import LoadedModel
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata
from carryover.transfer.convert.held import Held, held_whole


@dataclass(frozen=True)
class Target:
    """A library that checkpoints can be converted for.

    Attributes
    ----------
    name, suffixes
        What `--to` calls it, and the file name suffixes by which the library knows its files.
    require
        Raises UserError for a backbone that the library has no place for.
    rename, rename_back
        torchvision's name of a tensor -> the library's, and back (None where it is no backbone tensor).
        Written independently of each other, so that each checks the other.
    write, read
        Write a file of renamed tensors; read one back without the library.
    version
        The installed library and its version, or None with the reason when it cannot be imported.
    load
        Yields models of the library that have loaded the file by the library's own means.
    settings
        What the library must be told to build this backbone.
    hold
        What the library holds of a backbone: tokens dropped, factors folded, names of its own; all of it by
        default.
    """

    name: str
    suffixes: tuple[str, ...]
    require: Callable[[BackboneConfig], None]
    rename: Callable[[str], str]
    rename_back: Callable[[str], str | None]
    write: Callable[[Path, Mapping[str, Tensor], CanonicalMetadata], None]
    read: Callable[[Path], Mapping[str, Tensor]]
    version: Callable[[], tuple[str | None, str]]
    load: Callable[[Path, BackboneConfig], Iterator[LoadedModel]]
    settings: Callable[[CanonicalMetadata], dict[str, JsonValue]]
    hold: Callable[[Imported], Held] = held_whole


def require_resnet(config: BackboneConfig, library: str, instead: str) -> None:
    """Raise UserError unless a backbone is of the ResNet family, with ImageNet's stem and symmetric padding.

    The message names what it is not, and `instead`, the targets that take it.
    """
    if config.groups is None:
        raise UserError(f"{library} is given ResNets only, not {config.label}; convert to {instead} instead")
    if config.stem != "imagenet":
        channels = 64 * config.width
        raise UserError(
            f"'conv1.weight' has shape ({channels}, 3, 3, 3), the {config.stem} stem; {library}'s ResNet "
            f"expects ({channels}, 3, 7, 7): pretrain with `stem: imagenet` to carry a backbone there"
        )
    if config.padding != "symmetric":
        raise UserError(
            f"{config.label} pads as TensorFlow does, which {library}'s ResNet cannot; convert to canonical"
            " instead"
        )


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence a library's warnings and loggers for a while.

    They tell of every tensor that a backbone's file cannot fill; what counts is compared tensor by tensor.
    """
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def unchanged(name: str) -> str:
    """Return the name of a tensor in a library that uses torchvision's names."""
    return name
