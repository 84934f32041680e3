"""Barlow Twins and VICReg as methods: the dimensions of the embedding are kept from repeating each other."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from carryover.core.data.prepared import Batch
from carryover.core.training.distributed import gather
from carryover.pretrain.heads import Encoder
from carryover.pretrain.method_config import BarlowTwinsConfig, VICRegConfig
from carryover.pretrain.methods.base import Method, Moment, Outcome, unit
from carryover.pretrain.objectives.asymmetric import surrogate
from carryover.pretrain.objectives.decorrelation import (
    barlow_twins_loss,
    simplified_barlow_twins_gradient,
    simplified_vicreg_gradient,
    standardized,
    vicreg_gradient,
    vicreg_loss,
)
from carryover.pretrain.target import build_target


class BarlowTwins(Method):
    """The cross-correlation of two views driven to the identity (Eqs. 8, 29; Table 2 f, g, h)."""

    def __init__(self, config: BarlowTwinsConfig, online: Encoder) -> None:
        super().__init__(online, build_target(config.target, online))
        self.config = config

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        # Statistics and correlation are the global batch's, so every rank computes the global loss.
        everyone = [gather(z) for z in embeddings], [gather(v) for v in targets]
        if self.config.normalisation == "batch":
            u, v = ([standardized(z) for z in branch] for branch in everyone)
        else:
            u, v = (unit(branch) for branch in everyone)
        loss = (self._one_way(u[0], v[1]) + self._one_way(u[1], v[0])) / 2
        queries, keys = unit([embeddings[0], targets[1]])
        W_diagonal = (u[0] * v[1]).mean(0).detach()
        # Figure 3 (c): what Table 2's rows g and h take for constant.
        numbers = {"w_diag_max": W_diagonal.max(), "w_diag_min": W_diagonal.min()}
        return Outcome(loss, numbers, queries, keys)

    def _one_way(self, u: Tensor, v: Tensor) -> Tensor:
        lam = self.config.lam
        if self.config.form == "loss":
            return barlow_twins_loss(u, v, lam)
        return surrogate(u, simplified_barlow_twins_gradient(v, u.detach(), v, lam, self.config.a))


class VICReg(Method):
    """Invariance, variance and covariance terms (Eqs. 10, 33 to 35), or their simplified form (Eq. 12)."""

    def __init__(self, config: VICRegConfig, online: Encoder) -> None:
        super().__init__(online, build_target(config.target, online))
        self.config = config

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        (z1, z2), (v1, v2) = embeddings, targets
        if self.config.form == "loss":
            loss = (self._terms(gather(z1), gather(v2)) + self._terms(gather(z2), gather(v1))) / 2
        else:
            (u1, u2), (t1, t2) = unit([z1, z2]), unit([v1, v2])
            loss = (self._simplified(u1, t2, t1) + self._simplified(u2, t1, t2)) / 2
        queries, keys = unit([z1, v2])
        return Outcome(loss, queries=queries, keys=keys, details=lambda: self._neglected(z1.detach(), v2))

    @torch.no_grad()
    def _neglected(self, z: Tensor, v: Tensor) -> dict[str, Tensor]:
        """Compare what Eq. 11 neglects with the negative term it keeps (Figure 3 d); a collective call."""
        everyone, lam1, lam2 = gather(z), self.config.lam1, self.config.lam2
        count, width = everyone.shape
        lam = 2 * lam1 * count**2 / (width * (count - 1) ** 2)
        centered = everyone - everyone.mean(0)
        negative = simplified_vicreg_gradient(z - everyone.mean(0), torch.zeros_like(v), centered, 1.0)
        whole = vicreg_gradient(z, v, everyone, lam1, lam2, self.config.gamma)
        neglected = whole + 2 * v - lam * negative
        return {"neglected_term_similarity": cosine_similarity(neglected, negative).mean()}

    def _terms(self, z: Tensor, v: Tensor) -> Tensor:
        return vicreg_loss(z, v, self.config.lam1, self.config.lam2, self.config.gamma)

    def _simplified(self, u: Tensor, v: Tensor, same_view: Tensor) -> Tensor:
        negatives = gather((u if self.config.negatives_from == "online" else same_view).detach())
        return surrogate(u, simplified_vicreg_gradient(u.detach(), v, negatives, self.config.lam))
