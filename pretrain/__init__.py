"""Pretraining: images in, a canonical checkpoint out.

The room is callable: ``carryover.pretrain(recipe, out=...)`` is the Python API's function.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(
        self, recipe: str | Path, *, out: str | Path, data: str | Path | None = None, **overrides: Any
    ) -> Path:
        """Train a pretraining recipe in `out`, or go on with it; return its canonical checkpoint.

        Parameters
        ----------
        recipe
            A recipe's name, or a YAML file.
        data
            Root of the data set; overrides the recipe's ``data.root``.
        overrides
            Keys of the recipe: ``batch_size=64``, ``schedule={"epochs": 10}``, ``**{"data.split": "train"}``.

        Raises what `carryover.pretrain.trainer.train` does.
        """
        from carryover.configs import load
        from carryover.pretrain.trainer import train

        given = [*override_strings(overrides), *([] if data is None else [f"data.root={data}"])]
        return train(load("pretrain", recipe, given), Path(out))


def override_strings(given: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return keyword arguments of the Python API as ``dotted.key=value`` overrides."""
    found: list[str] = []
    for key, value in given.items():
        if isinstance(value, Mapping):
            found += override_strings(value, f"{prefix}{key}.")
        else:
            plain = str(value) if isinstance(value, Path) else value
            found.append(f"{prefix}{key}={json.dumps(plain)}")
    return found


sys.modules[__name__].__class__ = _Room
