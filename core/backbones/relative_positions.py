"""Tables of relative positions, which a detector adds to a vision transformer: they begin at zero."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from carryover.configs import WorkError

_TABLE = re.compile(r"(.*\.)?blocks\.\d+\.attn\.rel_pos_[hw]")


def is_table(name: str) -> bool:
    """Return whether a tensor is a table of decomposed relative positions."""
    return _TABLE.fullmatch(name) is not None


def begun(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's state with tables of relative positions at zero where it has none."""
    tables = {n: torch.zeros(v.shape) for n, v in network.state_dict().items() if is_table(n)}
    return {**tables, **state}


def without_tables(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the tensors that a detector took from a file; raises WorkError for tables that are not zero."""
    for name, value in tensors.items():
        if is_table(name) and bool(value.any()):
            raise WorkError(f"{where}: '{name}' of relative positions does not begin at zero")
    return {name: value for name, value in tensors.items() if not is_table(name)}
