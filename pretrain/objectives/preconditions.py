"""Checks of the input of objectives. Each waits for the device: once, before the first step."""

from torch import Tensor

from carryover.configs.errors import UserError


def check_normalized(name: str, x: Tensor, tolerance: float = 1e-2) -> None:
    """Raises UserError where rows of the embeddings `x` (B, d), called `name`, are not of unit length."""
    furthest = (x.detach().float().norm(dim=-1) - 1).abs().max().item()
    # Written so that NaN fails too.
    if not furthest <= tolerance:
        raise UserError(
            f"{name} must be l2-normalized, but a row's length is {furthest:.3g} away from 1: "
            "normalize the embeddings before the objective."
        )


def check_directions(name: str, x: Tensor) -> None:
    """Raises UserError where a row of the embeddings `x` (B, d), called `name`, has no direction.

    A row of zeros cannot be l2-normalized, nor can one with numbers that are not finite.
    """
    lengths = x.detach().float().norm(dim=-1)
    if not bool(((lengths > 1e-12) & lengths.isfinite()).all()):
        raise UserError(
            f"{name} cannot be l2-normalized: a row is all zeros, or not finite; look at the images' values,"
            " and at a checkpoint or head that gives nothing."
        )


def check_batch_statistics(name: str, x: Tensor) -> None:
    """Raises UserError where `x` (B, d), called `name`, has too few rows for statistics over the batch."""
    if len(x) < 2:
        raise UserError(
            f"{name} is a batch of {len(x)}: batch statistics (BN, correlation, covariance) need at least 2."
        )
