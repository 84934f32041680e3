"""What does my pretraining carry over? Downstream-transfer evaluation for self-supervised learning.

The command line is ``carryover``; the rooms are `carryover.configs`, `carryover.slurm`, `carryover.pretrain`
and `carryover.transfer`. Importing this module imports none of them.
"""

from typing import Any

__all__ = ["__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from carryover.configs.formats import release

        return release()
    raise AttributeError(f"module 'carryover' has no attribute {name!r}")
