"""Instance discrimination over a memory bank: every image is its own class (NPID, SqrtKL).

Source: Cao and Wu, "On Improving the Algorithm-, Model-, and Data-Efficiency of Self-Supervised Learning"
(cited as SqrtKL); Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"
(NPID). Symbols: z_i an image's l2-normalized embedding, w_k the bank's row of image k, p_k =
softmax_k(z.w_k / tau), u = sqrt(p) / sum sqrt(p). The sums over the N classes are streamed (`streaming.py`):
memory does not grow with B x N. NPID is lam = 0, direction z (Eq. 3), plus `proximal_loss`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from carryover.pretrain.objectives.precision import at_least_float32, promote
from carryover.pretrain.objectives.streaming import ClassSums, class_sums


@dataclass(frozen=True)
class InstanceTerms:
    """Result of one batch. Only `loss` has a gradient; scalars stay tensors to avoid waiting."""

    loss: Tensor  # () cross entropy + lam x (l1 L1 + l2 L2), mean over the batch
    cross_entropy: Tensor  # () Eq. 2
    sqrtkl: Tensor  # () KL(p, u), Eq. 7
    accuracy: Tensor  # () share of images whose own class has the largest probability
    batch_probabilities: Tensor  # (B, B): [i, j] is p_i^(j), what instance j gives to the class of instance i
    log_partition: Tensor  # (B,) log sum_k e^(z.w_k / tau), for `class_probabilities` over a gathered batch


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradient in z is already known."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, z: Tensor, loss: Tensor, gradient: Tensor
    ) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return upstream * gradient, None, None


@at_least_float32
def own_logits(z: Tensor, own_rows: Tensor, tau: float) -> Tensor:
    """z_i.w_i / tau (B,) in float64: near one-hot, its error would be the whole gradient's."""
    return (z.detach().double() * own_rows.double()).sum(1) / tau


def instance_loss(
    z: Tensor, bank: Tensor, index: Tensor, tau: float, lam: float, l1: float = 1.0, l2: float = 1.0
) -> InstanceTerms:
    """Cross entropy + lam (l1 L1 + l2 L2) against all N classes, L1 + L2 = KL(p, u) (Eqs. 2, 7, 12, 13).

    z: (B, d) l2-normalized; bank: (N, d), a constant; index: (B,) each image's row. L1 = sum p log p and L2 =
    -sum p log u, with u a constant in the gradient: Table 8's rows are (l1, l2) = (1, 0), (0, 1), (1, 1). The
    gradient is exact over all N classes, computed in the forward pass.
    """
    # Not `at_least_float32`: it would copy a bank stored in bfloat16 as a whole.
    with torch.autocast(z.device.type, enabled=False):
        z, bank = promote(z), bank.detach()
        own_rows = bank[index]
        own = own_logits(z, own_rows, tau)
        sums = class_sums(z.detach(), bank, index, own, tau)
        return terms_of_sums(z, own_rows, own, sums, tau, lam, l1, l2)


def terms_of_sums(
    z: Tensor, own_rows: Tensor, own: Tensor, sums: ClassSums, tau: float, lam: float, l1: float, l2: float
) -> InstanceTerms:
    """Loss and gradient from the sums over all classes but the own one.

    z, own_rows: (B, d); own: (B,) float64 from `own_logits`; sums: over all N classes. With a the weight of
    p_k (s_k - E s) in the gradient (1 from L1, -1/2 from L2), dloss/ds_k = p_k (1 + a (s_k - E s)) for every
    class k but the own; these and the own class's sum to zero, hence the differences w_k - w_own.
    """
    maximum = sums.maximum.double()
    total, tilt, half = sums.total.double(), 2 * sums.tilt.double(), sums.half.double()
    own_shift = own - maximum
    own_weight = own_shift.exp()
    partition = total + own_weight
    log_partition = partition.log()
    expected_shift = (tilt + own_weight * own_shift) / partition

    cross_entropy = softplus(total.log() - own_shift)
    entropy_term = expected_shift - log_partition
    sharpening_term = (half + (own_shift / 2).exp()).log() - expected_shift / 2
    loss = cross_entropy + lam * (l1 * entropy_term + l2 * sharpening_term)

    a = lam * (l1 - l2 / 2)
    plain = ((1 - a * expected_shift) / partition).unsqueeze(1)
    tilted = (a / partition).unsqueeze(1)
    pulled = plain * sums.mean.double() + tilted * 2 * sums.tilted_mean.double()
    weight = plain * total.unsqueeze(1) + tilted * tilt.unsqueeze(1)
    gradient = (pulled - weight * own_rows.double()) / (tau * z.shape[0])

    log_partition = maximum + log_partition
    return InstanceTerms(
        loss=_KnownGradient.apply(z, loss.mean().to(z.dtype), gradient.to(z.dtype)),
        cross_entropy=cross_entropy.mean().to(z.dtype),
        sqrtkl=(entropy_term + sharpening_term).mean().to(z.dtype),
        accuracy=(own.to(z.dtype) >= sums.maximum).to(z.dtype).mean(),
        batch_probabilities=class_probabilities(own_rows, z, log_partition, tau),
        log_partition=log_partition,
    )


@at_least_float32
def class_probabilities(rows: Tensor, z: Tensor, log_partition: Tensor, tau: float) -> Tensor:
    """(R, B): [i, j] is the probability that instance j, embedding z_j, gives to the class with row w_i.

    rows: (R, d) bank rows; z: (B, d) and log_partition: (B,) of the whole batch, gathered over ranks where
    there are several. A constant.
    """
    logits = rows.to(z.dtype) @ z.detach().T / tau
    return (logits - log_partition.to(z.dtype)).exp()


@at_least_float32
def corrected_direction(z: Tensor, batch_probabilities: Tensor) -> Tensor:
    """z^_i = (1 - p_i^(i)) z_i - sum_{j != i} p_i^(j) z_j (SqrtKL Eq. 5), for every batch instance: (B, d).

    It is the negative gradient of the batch's summed cross entropy (Eq. 4) in w_i, times tau. The paper
    writes p_j for the weight of z_j; what Eq. 4 gives is the probability that instance j gives to class *i*.
    """
    z = z.detach()
    return z - batch_probabilities @ z


@at_least_float32
def updated_rows(rows_old: Tensor, direction: Tensor, momentum: float) -> Tensor:
    """Return the bank rows m w + (1 - m) direction, l2-normalized (SqrtKL Eqs. 3 and 6): (B, d).

    The paper does not mention the normalization. NPID, on which it builds, normalizes after every update, and
    without it a row whose class is learnt (p near 1, hence a direction near 0) would shrink to nothing.
    """
    return normalize(momentum * rows_old.detach() + (1 - momentum) * direction.detach(), dim=1)


@at_least_float32
def proximal_loss(z: Tensor, rows: Tensor) -> Tensor:
    """Mean over the batch of |z_i - w_i|^2 (SqrtKL Eq. 11; NPID's proximal term): z, rows (B, d)."""
    return (z - rows.detach()).square().sum(1).mean()
