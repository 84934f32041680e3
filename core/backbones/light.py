"""torchvision and timm imported without torch's compiler, which neither needs for what is done here.

torchvision imports `torch._dynamo` for one question of an operator, timm for one decorator: most of what
importing them takes. Both are answered when they are asked. It is done only in a program that inspects a file
and ends (`short_lived`); everywhere else the libraries are imported as they are.
"""

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_UTILS = f"{_COMPILER}.utils"
_short_lived = False


def import_torchvision() -> None:
    """Import torchvision without torch's compiler, unless it is imported already."""
    if "torchvision" in sys.modules or not _alone():
        return
    import torch

    package, utils = ModuleType(_COMPILER), ModuleType(_UTILS)
    package.utils = utils  # type: ignore[attr-defined]
    package.__path__ = []
    utils.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules[_COMPILER], sys.modules[_UTILS] = package, utils
    try:
        import torchvision  # noqa: F401
    except (ImportError, AttributeError):
        # Another torchvision asks for more: it is imported as it would have been.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    finally:
        del sys.modules[_COMPILER], sys.modules[_UTILS]
        if torch.__dict__.get("_dynamo") is package:
            del torch._dynamo


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import modules whose functions are decorated by `torch.compiler.disable`, without torch's compiler."""
    import_torchvision()
    if not _alone():
        yield
        return
    import torch

    real = torch.compiler.disable

    def disable(fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        if fn is None:
            return lambda function: _excluded(real, function, args, kwargs)
        return _excluded(real, fn, args, kwargs)

    torch.compiler.disable = disable
    try:
        yield
    finally:
        torch.compiler.disable = real


@contextmanager
def short_lived() -> Iterator[None]:
    """Import without torch's compiler, and without collecting garbage, then or when the program ends.

    For programs that end after it: what modules consist of is no garbage, and to walk through it takes a
    third of the time of importing torch.
    """
    global _short_lived
    gc.disable()
    _short_lived = True
    try:
        yield
    finally:
        _short_lived = False
        gc.freeze()
        gc.enable()


def _alone() -> bool:
    """Return whether the program only inspects, and the compiler is neither imported nor can be meanwhile."""
    return _short_lived and _COMPILER not in sys.modules and threading.active_count() == 1


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))


def _excluded(real: Callable[..., Any], function: Any, args: Any, kwargs: Any) -> Any:
    """Return a function that compiled code does not enter, once there is a compiler."""
    if isinstance(function, type):
        return real(function, *args, **kwargs)
    made: list[Any] = []

    def called(*given: Any, **named: Any) -> Any:
        if _COMPILER not in sys.modules:
            return function(*given, **named)
        if not made:
            made.append(real(function, *args, **kwargs))
        return made[0](*given, **named)

    return called
