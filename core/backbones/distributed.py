"""Folders of torch.distributed.checkpoint, put together without a process group; parts of ranks told."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carryover.configs import UserError
from carryover.core.backbones.inert import Inert
from carryover.core.backbones.mapped import Mapped
from carryover.core.backbones.torch_file import read_zip
from carryover.core.backbones.unpickling import SafeUnpickler

WHOLE = (
    "save the whole model: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True,"
    " cpu_offload=True)) on every rank and torch.save on the first; of a folder of"
    " torch.distributed.checkpoint, `python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER"
    " FILE` (carryover reads such folders itself)"
)
_SMALL = 100_000


def read_distributed(
    described: Path, values: "Wanted"
) -> tuple[dict[str, Tensor], dict[str, object], tuple[Mapped, ...]]:
    """Read the folder of a ``.metadata`` file.

    Returns tensors by their names, the other values that are text or numbers, and the mapped files. Tensors
    that `values` does not want (of optimizers) have a shape and no values.

    Raises
    ------
    UserError
        For files that are not there, damaged, or compressed; each is named.
    """
    try:
        with described.open("rb") as file:
            about = SafeUnpickler(file).load()
        known: Mapping[str, Any] = about.state["state_dict_metadata"]
        pieces = _pieces(about.state["storage_data"])
        mapped = _map(described, {info.state["relative_path"] for _, info in _all(pieces)})
    except (pickle.UnpicklingError, EOFError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{described}: not a description of torch.distributed.checkpoint"
            f" ({type(error).__name__}: {error})"
        ) from None
    tensors: dict[str, Tensor] = {}
    others: dict[str, object] = {}
    for name, entry in known.items():
        try:
            if "chunks" in entry.state:
                tensors[name] = _tensor(entry, pieces.get(name, []), mapped, values(name))
            elif pieces.get(name) and pieces[name][0][1].state["length"] < _SMALL and values(name):
                others[name] = _read(pieces[name][0][1], mapped)
        except UserError as error:
            raise UserError(f"{described.parent}: '{name}': {error}") from None
        except (
            pickle.UnpicklingError,
            zipfile.BadZipFile,
            EOFError,
            KeyError,
            ValueError,
            RuntimeError,
        ) as error:
            raise UserError(f"{described.parent}: '{name}': truncated or damaged ({error})") from None
    return tensors, others, tuple(mapped.values())


class Wanted:
    """Returns whether the values of the tensor of this name are needed."""

    def __call__(self, name: str) -> bool:
        return not name.startswith(("optim", "optimizer", "lr_scheduler")) and ".optim" not in name


def part_of_rank(node: Inert) -> str | None:
    """Return which part of a tensor one rank has; None where a node is no such part, or the whole."""
    kind = node.named.rpartition(".")[2]
    if kind == "ShardedTensor":
        return "a ShardedTensor of one rank"
    if kind != "DTensor":
        return None
    local, spec = node.state.get("_local_tensor"), node.state.get("_spec")
    whole = node.args[2] if len(node.args) > 2 else ()
    if isinstance(local, Tensor) and tuple(local.shape) == whole:
        return None
    places = getattr(spec, "state", {}).get("placements", ())
    words = ", ".join(
        f"{p.named.rpartition('.')[2]}({', '.join(map(str, p.state.values()))})"
        for p in places
        if isinstance(p, Inert)
    )
    held = f", {tuple(local.shape)} of {whole}" if isinstance(local, Tensor) else ""
    return f"a DTensor of one rank{f' [{words}]' if words else ''}{held}"


def whole_of_rank(node: Inert) -> Tensor | None:
    """Return the values of a DTensor that one rank holds whole."""
    local = node.state.get("_local_tensor")
    return local if isinstance(local, Tensor) else None


_Pieces = dict[str, list[tuple[tuple[int, ...], Any]]]


def _pieces(stored: Mapping[Any, Any]) -> _Pieces:
    found: _Pieces = {}
    for index, info in stored.items():
        if info.state.get("transform_descriptors"):
            raise UserError(f"'{index.state['fqn']}' is stored compressed; {WHOLE}")
        found.setdefault(index.state["fqn"], []).append((tuple(index.state.get("offset") or ()), info))
    return found


def _all(pieces: _Pieces) -> Iterator[tuple[tuple[int, ...], Any]]:
    for held in pieces.values():
        yield from held


def _map(described: Path, names: set[str]) -> dict[str, Mapped]:
    if missing := sorted(name for name in names if not described.with_name(name).is_file()):
        raise UserError(
            f"{described.parent}: {len(missing)} of {len(names)} files are not there: '{missing[0]}';"
            " copy the files of every rank into the folder"
        )
    return {name: Mapped(described.with_name(name)) for name in sorted(names)}


def _read(info: Any, mapped: Mapping[str, Mapped]) -> Any:
    begins = info.state["offset"]
    return read_zip(mapped[info.state["relative_path"]].view[begins : begins + info.state["length"]]).tree


def _tensor(entry: Inert, pieces: list[Any], mapped: Mapping[str, Mapped], values: bool) -> Tensor:
    size = tuple(entry.state["size"])
    if not values:
        return torch.empty(size, device="meta")
    if len(pieces) == 1 and isinstance(only := _read(pieces[0][1], mapped), Tensor) and only.shape == size:
        return only
    whole, filled = None, 0
    for offset, info in pieces:
        part = _read(info, mapped)
        whole = torch.empty(size, dtype=part.dtype) if whole is None else whole
        whole[tuple(slice(o, o + n) for o, n in zip(offset, part.shape))] = part
        filled += part.numel()
    if whole is None or filled != whole.numel():
        raise UserError(f"its parts hold {filled} of {torch.Size(size).numel()} values")
    return whole
