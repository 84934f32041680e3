"""What does my pretraining carry over? Downstream-transfer evaluation for self-supervised learning.

The command line is ``carryover``; the functions here are its Python API, imported when they are first used:
importing this package imports neither torch nor anything else of weight.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carryover import pretrain as pretrain
    from carryover.configs.errors import CarryoverError, UserError, WorkError
    from carryover.core.backbones.given import Given
    from carryover.core.backbones.interface import Backbone
    from carryover.core.backbones.stated import Pixels, Stated
    from carryover.core.formats.backbone import register_backbone
    from carryover.pretrain.method_config import register_method
    from carryover.pretrain.online.loop import OnlineSignals
    from carryover.pretrain.online.rank import lidar, rankme
    from carryover.transfer.api import convert, evaluate, inspect, load_backbone, read_results
    from carryover.transfer.convert.targets import register_target
    from carryover.transfer.results.record import ResultRecord as Result
    from carryover.transfer.tasks.config import register_task

    __version__: str

__all__ = [
    "Backbone",
    "CarryoverError",
    "Given",
    "OnlineSignals",
    "Pixels",
    "Result",
    "Stated",
    "UserError",
    "WorkError",
    "__version__",
    "convert",
    "evaluate",
    "inspect",
    "lidar",
    "load_backbone",
    "pretrain",
    "rankme",
    "read_results",
    "register_backbone",
    "register_method",
    "register_target",
    "register_task",
]

_API = ("convert", "evaluate", "inspect", "load_backbone", "read_results")
_HOMES = {
    **{name: ("carryover.transfer.api", name) for name in _API},
    **{name: ("carryover.configs.errors", name) for name in ("CarryoverError", "UserError", "WorkError")},
    "Backbone": ("carryover.core.backbones.interface", "Backbone"),
    "register_backbone": ("carryover.core.formats.backbone", "register_backbone"),
    "register_method": ("carryover.pretrain.method_config", "register_method"),
    "register_target": ("carryover.transfer.convert.targets", "register_target"),
    "register_task": ("carryover.transfer.tasks.config", "register_task"),
    "Pixels": ("carryover.core.backbones.stated", "Pixels"),
    "Stated": ("carryover.core.backbones.stated", "Stated"),
    "OnlineSignals": ("carryover.pretrain.online.loop", "OnlineSignals"),
    "lidar": ("carryover.pretrain.online.rank", "lidar"),
    "rankme": ("carryover.pretrain.online.rank", "rankme"),
    "Given": ("carryover.core.backbones.given", "Given"),
    "Result": ("carryover.transfer.results.record", "ResultRecord"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from carryover.configs.formats import release

        return release()
    if name == "pretrain":
        return importlib.import_module("carryover.pretrain")
    if name not in _HOMES:
        raise AttributeError(f"module 'carryover' has no attribute {name!r}")
    home, attribute = _HOMES[name]
    return getattr(importlib.import_module(home), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
