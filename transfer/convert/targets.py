"""The libraries that checkpoints can be converted for, by name (torch-free)."""

from typing import TYPE_CHECKING

from carryover.configs.registry import Registry

if TYPE_CHECKING:
    from carryover.transfer.convert.target import Target

TARGETS: "Registry[Target]" = Registry("target", "carryover.targets")
"""A user's package adds one by an entry point of the group, or by `register_target`."""

for _name in ("torchvision", "detectron2", "mmseg", "timm", "canonical"):
    TARGETS.register(_name, f"carryover.transfer.convert.{_name}:TARGET")


def register_target(target: "Target") -> None:
    """Add a library for this process, under ``target.name``; raises UserError where another has the name."""
    TARGETS.register(target.name, target)
