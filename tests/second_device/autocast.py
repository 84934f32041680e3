"""Autocast for the device, by CUDA's lists of operators, which torch ships in a header."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_HEADER = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
_KEY = "AutocastPrivateUse1"
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
_cache: dict[int, tuple[Tensor, Tensor]] = {}
_libraries: list[torch.library.Library] = []


def listed(macro: str) -> list[str]:
    """Return the operators of one of the header's lists, `name` or `name.overload`."""
    text = _HEADER.read_text(encoding="utf-8")
    found = re.search(rf"#define {macro}\(_\)((?:.*\\\n)*.*\n)", text)
    assert found is not None, f"{_HEADER} has no {macro}"
    return [
        ".".join(part.strip() for part in one.split(",")) for one in re.findall(r"_\(([^)]*)\)", found[1])
    ]


def register_autocast(everything: torch.library.Library) -> None:
    """Register every listed operator's kernel; the others pass autocast by."""
    everything.fallback(torch.library.fallthrough_kernel, _KEY)
    aten = torch.library.Library("aten", "IMPL")
    for name in listed("AT_FORALL_LOWER_PRECISION_FP"):
        _implement(aten, name, _cast_to(None))
    for name in listed("AT_FORALL_FP32"):
        _implement(aten, name, _cast_to(torch.float32))
    for name in listed("AT_FORALL_FP32_SET_OPT_DTYPE"):
        _implement(aten, name, _float32_result)
    for name in ("norm.Scalar", "norm.ScalarOpt_dim", "norm.names_ScalarOpt_dim"):
        _implement(aten, name, _cast_to(torch.float32))
    for name in listed("AT_FORALL_PROMOTE"):
        _implement(aten, name, _widest)
    _implement(aten, "binary_cross_entropy", _refused)
    torchvision = torch.library.Library("torchvision", "IMPL")
    for name in ("roi_align", "nms"):
        _implement(torchvision, name, _in_float32_and_back)
    _libraries.extend([aten, torchvision])
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        _cache.clear()
        clear()

    torch.clear_autocast_cache = clear_both


Policy = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def _implement(library: torch.library.Library, name: str, policy: Policy) -> None:
    base, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops, library.ns), base, None)
    if operator is None or (overload or "default") not in operator.overloads():
        return
    op = getattr(operator, overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            return policy(op, args, kwargs)

    library.impl(name, kernel, _KEY)


def _cast_to(dtype: torch.dtype | None) -> Policy:
    """Cast every tensor; None: to the dtype of the autocast context."""

    def policy(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        wanted = torch.get_autocast_dtype("second") if dtype is None else dtype
        args, kwargs = pytree.tree_map(lambda value: _cast(value, wanted), (args, kwargs))
        return op(*args, **kwargs)

    return policy


def _float32_result(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    place = [argument.name for argument in op._schema.arguments].index("dtype")
    said = args[place] if len(args) > place else kwargs.get("dtype")
    if said is None and _eligible(args[0]) and len(args) <= place:
        kwargs = {**kwargs, "dtype": torch.float32}
    return op(*args, **kwargs)


def _widest(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [v for v in pytree.tree_leaves((args, kwargs)) if _eligible(v)]
    wide = any(v.dtype == torch.float32 for v in tensors)
    wanted = torch.float32 if wide else torch.get_autocast_dtype("second")
    args, kwargs = pytree.tree_map(lambda value: _cast(value, wanted), (args, kwargs))
    return op(*args, **kwargs)


def _in_float32_and_back(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # torchvision's own autocast kernels do so.
    first = args[0]
    args, kwargs = pytree.tree_map(lambda value: _cast(value, torch.float32), (args, kwargs))
    result = op(*args, **kwargs)
    return result.to(first.dtype) if result.is_floating_point() else result


def _refused(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise RuntimeError(f"{op} is unsafe to autocast; use binary_cross_entropy_with_logits")


def _eligible(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.device.type == "second"
        and value.is_floating_point()
        and value.dtype != torch.float64
    )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if not _eligible(value) or value.dtype == dtype:
        return value
    kept = (
        dtype != torch.float32
        and value.dtype == torch.float32
        and value.requires_grad
        and value.is_leaf
        and not value._is_view()
        and torch.is_autocast_cache_enabled()
    )
    if not kept:
        return value.to(dtype)
    if id(value) not in _cache:
        _cache[id(value)] = value, value.to(dtype)
    return _cache[id(value)][1]
