"""The memory bank: one l2-normalised row an image, read by the instance losses and moved after every step."""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from configs.errors import UserError


class MemoryBank:
    """N rows of d numbers, on one device, all of them on every rank.

    `tensor` (N, d) is what `objectives.instance.instance_loss` reads.
    """

    def __init__(self, rows: Tensor) -> None:
        """Takes (N, d) rows as they are; see `random` and `calibrated` for the two ways to begin."""
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
        """Rows drawn uniformly from the unit sphere: how NPID and MoCo begin."""
        rows = normalize(torch.randn(num_rows, width, generator=generator, device=generator.device), dim=1)
        return cls(rows.to(device=device, dtype=dtype))

    @classmethod
    def calibrated(cls, features: Tensor, dtype: torch.dtype = torch.float32) -> "MemoryBank":
        """Feature calibrate: rows are the untrained network's embeddings (N, d) (SqrtKL section 3.2)."""
        return cls(normalize(features.detach().float(), dim=1).to(dtype))

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def rows(self, index: Tensor) -> Tensor:
        """The rows (B, d) of the images `index` (B,)."""
        return self.tensor[index.to(self.tensor.device)]

    def update(self, index: Tensor, rows: Tensor) -> None:
        """Replace the rows of the images `index` (B,) by `rows` (B, d); a repeated one keeps its last."""
        index = index.to(self.tensor.device)
        order = torch.arange(len(index), device=index.device)
        # Which of two unequal writes to one row wins would be undefined, and could differ between ranks.
        last = torch.where(index.unsqueeze(1) == index, order, -1).amax(dim=1)
        self.tensor[index] = rows.to(self.tensor)[last]

    def check(self, num_images: int, width: int) -> None:
        """Raises UserError where the bank does not hold one row of this width for every image."""
        expected = (num_images, width)
        if tuple(self.tensor.shape) != expected:
            raise UserError(
                f"The memory bank holds {self.tensor.shape[0]} rows of {self.tensor.shape[1]} numbers, but "
                f"the data set has {num_images} images and the head gives {width} numbers: it must be "
                f"{expected}."
            )

    def state_dict(self) -> dict[str, Tensor]:
        """What resuming needs."""
        return {"rows": self.tensor}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over saved rows. Raises UserError where their shape is not this bank's."""
        saved = state["rows"]
        if saved.shape != self.tensor.shape:
            raise UserError(
                f"The checkpoint's memory bank has shape {tuple(saved.shape)}, this run's is "
                f"{tuple(self.tensor.shape)}: was the data set or the head's width changed?"
            )
        self.tensor.copy_(saved)
