"""Lets mmsegmentation be imported over mmcv-lite, which has no compiled operators.

mmseg imports a few names from `mmcv.ops`, and those look up their kernels in `mmcv._ext` at once. With a
stand-in of that name the imports succeed; calling a kernel that is not there is an error that says so.
Plain FCN and UPerNet call none.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

_NAME = "mmcv._ext"


class _MissingKernels(ModuleType):
    """Has every kernel's name; calling one raises RuntimeError."""

    def __getattr__(self, kernel: str) -> Callable[..., NoReturn]:
        if kernel.startswith("__"):
            raise AttributeError(kernel)

        def absent(*_: object, **__: object) -> NoReturn:
            raise RuntimeError(
                f"mmcv.ops needs its compiled kernel '{kernel}', which mmcv-lite does not have"
            )

        return absent


def install() -> None:
    """Put the stand-in in place, unless mmcv has its compiled operators or is not installed at all."""
    if _NAME in sys.modules or importlib.util.find_spec("mmcv") is None:
        return
    if importlib.util.find_spec(_NAME) is not None:
        return
    stand_in = _MissingKernels(_NAME)
    # importlib.util.find_spec raises for a module in sys.modules whose spec is not set.
    stand_in.__spec__ = importlib.machinery.ModuleSpec(_NAME, loader=None)
    sys.modules[_NAME] = stand_in
