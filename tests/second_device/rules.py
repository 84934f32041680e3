"""What CUDA refuses, and what makes it wait for the device."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

# Their result's size, or the value that the host asks for, is known only when the device has come so far; of
# the decompositions the host looks at the status (torch.linalg's documentation of each).
_WAITING = {
    "aten::_local_scalar_dense": "a number is asked for",
    "aten::equal": "two tensors are compared on the host",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "a mask selects",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::bincount": "bincount",
    "aten::_linalg_eigh": "linalg.eigh",
    "aten::linalg_eig": "linalg.eig",
    "aten::_linalg_svd": "linalg.svd",
    "aten::linalg_lstsq": "linalg.lstsq",
    "aten::matrix_exp": "matrix_exp",
    "torchvision::nms": "nms",
}
# Whose value may be a number on the host, besides that of elementwise operators.
_TAKE_NUMBERS = ("aten::masked_fill", "aten::index_fill", "aten::fill", "aten::where", "aten::lerp")
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


def waits(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return in words why the host waits for this operator's device; None: it does not."""
    name = func._schema.name
    if name in INDEXING and _by_mask(args[1]) and not _fills(name, args):
        return "a mask is an index"
    if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
        return "repeat_interleave without output_size"
    return _WAITING.get(name)


def takes_number(func: OpOverload) -> bool:
    """Whether a tensor without dimensions on the host will do for this operator, as a number."""
    return torch.Tag.pointwise in func.tags or func._schema.name.startswith(_TAKE_NUMBERS)


def _by_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)


def _fills(name: str, args: Sequence[Any]) -> bool:
    """A single number written under masks is a masked_fill, as in ATen (canDispatchToMaskedFill)."""
    if name == "aten::index":
        return False
    accumulate = len(args) > 3 and args[3]
    masks = all(i is None or i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return not accumulate and masks and args[2].numel() == 1
