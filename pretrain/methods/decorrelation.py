"""Barlow Twins and VICReg as methods: the dimensions of the embedding are kept from repeating each other."""

from collections.abc import Sequence

from torch import Tensor

from pretrain.data import Batch
from pretrain.distributed import gather
from pretrain.heads import Encoder
from pretrain.method_config import BarlowTwinsConfig, VICRegConfig
from pretrain.methods.base import Method, Moment, Outcome, siamese_numbers, unit
from pretrain.objectives.asymmetric import surrogate
from pretrain.objectives.decorrelation import (
    barlow_twins_loss,
    cross_correlation,
    simplified_barlow_twins_gradient,
    simplified_vicreg_gradient,
    standardised,
    vicreg_loss,
)
from pretrain.target import build_target


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
            u, v = ([standardised(z) for z in branch] for branch in everyone)
        else:
            u, v = (unit(branch) for branch in everyone)
        loss = (self._one_way(u[0], v[1]) + self._one_way(u[1], v[0])) / 2
        first, second = unit([embeddings[0], targets[1]])
        return Outcome(loss, siamese_numbers(first, second))

    def _one_way(self, u: Tensor, v: Tensor) -> Tensor:
        lam = self.config.lam
        if self.config.form == "loss":
            return barlow_twins_loss(cross_correlation(u, v), lam)
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
        first, second = unit([z1, v2])
        if self.config.form == "loss":
            loss = (self._terms(gather(z1), gather(v2)) + self._terms(gather(z2), gather(v1))) / 2
        else:
            (u1, u2), (t1, t2) = unit([z1, z2]), unit([v1, v2])
            loss = (self._simplified(u1, t2, t1) + self._simplified(u2, t1, t2)) / 2
        return Outcome(loss, siamese_numbers(first, second))

    def _terms(self, z: Tensor, v: Tensor) -> Tensor:
        return vicreg_loss(z, v, self.config.lam1, self.config.lam2, self.config.gamma)

    def _simplified(self, u: Tensor, v: Tensor, same_view: Tensor) -> Tensor:
        negatives = gather((u if self.config.negatives_from == "online" else same_view).detach())
        return surrogate(u, simplified_vicreg_gradient(u.detach(), v, negatives, self.config.lam))
