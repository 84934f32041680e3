"""The memory bank: one l2-normalized row an image, read by the instance losses and moved after every step."""

from collections.abc import Iterator, Mapping

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from carryover.configs.errors import UserError
from carryover.pretrain.objectives.instance import InstanceTerms, instance_loss

# Rows drawn at a time, so that a rank that keeps a shard never holds the whole bank.
_BLOCK = 2**16


class MemoryBank:
    """N rows of d numbers, on one device, all of them on every rank (`sharded_bank` for a part on each).

    `tensor` (N, d) holds the rows.
    """

    def __init__(self, rows: Tensor) -> None:
        """Takes (N, d) rows as they are, l2-normalized; see `random`."""
        self.tensor = rows

    @classmethod
    def random(
        cls,
        num_rows: int,
        width: int,
        generator: Generator,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "MemoryBank":
        """Rows drawn uniformly from the unit sphere: how NPID and MoCo begin.

        SqrtKL's *feature calibrate* then replaces every one by the untrained network's embedding (`update`).
        """
        rows = torch.empty(num_rows, width, device=device, dtype=dtype)
        for start, block in random_rows(num_rows, width, generator):
            rows[start : start + len(block)] = block
        return cls(rows)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def rows(self, index: Tensor) -> Tensor:
        """Return the rows (B, d) of the images `index` (B,)."""
        return self.tensor[index.to(self.tensor.device)]

    def loss(
        self, z: Tensor, index: Tensor, tau: float, lam: float, l1: float = 1.0, l2: float = 1.0
    ) -> InstanceTerms:
        """The instance loss (`objectives.instance.instance_loss`) of z (B, d), the images `index` (B,)."""
        return instance_loss(z, self.tensor, index.to(self.tensor.device), tau, lam, l1, l2)

    def update(self, index: Tensor, rows: Tensor) -> None:
        """Replace the rows of the images `index` (B,) by `rows` (B, d); a repeated one keeps its last."""
        index = index.to(self.tensor.device)
        self.tensor[index] = rows.to(self.tensor)[last_of_each(index)]

    def check(self, num_images: int, width: int) -> None:
        """Raises UserError where the bank does not hold one row of this width for every image."""
        check_size(len(self), self.tensor.shape[1], num_images, width)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that resuming needs."""
        return {"rows": self.tensor}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved rows. Raises UserError where their shape is not this bank's."""
        check_saved(state["rows"], len(self), self.tensor.shape[1])
        self.tensor.copy_(state["rows"])


def random_rows(num_rows: int, width: int, generator: Generator) -> Iterator[tuple[int, Tensor]]:
    """Rows uniform on the unit sphere, in blocks with the index of their first row."""
    for start in range(0, num_rows, _BLOCK):
        size = (min(_BLOCK, num_rows - start), width)
        yield start, normalize(torch.randn(size, generator=generator, device=generator.device), dim=1)


def last_of_each(index: Tensor) -> Tensor:
    """For every position of `index` (B,), the last position (B,) that holds the same value.

    Which of two unequal writes to one row wins is undefined, and could differ between ranks.
    """
    order = torch.arange(len(index), device=index.device)
    return torch.where(index.unsqueeze(1) == index, order, -1).amax(dim=1)


def check_size(num_rows: int, row_width: int, num_images: int, width: int) -> None:
    """Raises UserError where a bank of this size does not fit the data set and the head."""
    if (num_rows, row_width) != (num_images, width):
        raise UserError(
            f"The memory bank holds {num_rows} rows of {row_width} numbers, but the data set has "
            f"{num_images} images and the head gives {width} numbers: expected one row of {width} for every "
            "image."
        )


def check_saved(saved: Tensor, num_rows: int, width: int) -> None:
    """Raises UserError where saved rows do not fit a bank of this size."""
    if tuple(saved.shape) != (num_rows, width):
        raise UserError(
            f"The checkpoint's memory bank has shape {tuple(saved.shape)}, this run's is "
            f"{(num_rows, width)}: was the data set or the head's width changed?"
        )
