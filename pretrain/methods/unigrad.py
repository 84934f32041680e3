"""UniGrad as a method: momentum targets and a correlation matrix that remembers all previous samples."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from carryover.core.data.config import CutMixConfig
from carryover.core.data.prepared import Batch
from carryover.core.training.device import copied_to
from carryover.core.training.distributed import gather, mean_over_ranks, own_slice, rows_of_batch, world_size
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.cutmix import CutMix, draw_cutmix, paste
from carryover.pretrain.heads import Encoder
from carryover.pretrain.method_config import UniGradConfig
from carryover.pretrain.methods.base import DataFacts, Method, Moment, Outcome, unit
from carryover.pretrain.objectives.unigrad import (
    batch_correlation,
    multicrop_positives,
    positive_mixture,
    unigrad_loss,
    update_correlation,
)
from carryover.pretrain.target import build_target


class UniGrad(Method):
    """UniGrad (Eq. 14 and 15): two global views and any number of local ones, all views counting the same.

    With CutMix (section 5.2) the online network sees mixed images only, so that it costs nothing, and the
    target branch clean ones, which give the positives to be mixed and F. Every view is mixed, local ones too,
    each with patches of its own; the paper does not say.
    """

    def __init__(
        self,
        config: UniGradConfig,
        online: Encoder,
        width: int,
        cutmix: CutMixConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(online, build_target(config.target, online))
        self.config = config
        self.cutmix, self.seed = cutmix, seed
        self.correlation: Tensor
        self.register_buffer("correlation", torch.zeros(width, width))

    @classmethod
    def of(cls, recipe: PretrainConfig, online: Encoder, facts: DataFacts) -> "UniGrad":
        assert isinstance(recipe.method, UniGradConfig) and recipe.projector is not None
        return cls(recipe.method, online, recipe.projector.out, recipe.augment.cutmix, recipe.seed)

    def seen(self, batch: Batch, moment: Moment) -> list[Tensor]:
        if self.cutmix is None:
            return batch.views
        mixes = self._mixes(batch.views, moment)
        return [_mixed(view, mix) for view, mix in zip(batch.views, mixes, strict=True)]

    def embed(self, views: Sequence[Tensor]) -> list[Tensor]:
        # Local crops share one forward pass, as in SwAV and DINO; the paper does not say.
        embeddings = [self.online(view) for view in views[:2]]
        if locals_ := list(views[2:]):
            embeddings += self.online(torch.cat(locals_)).chunk(len(locals_))
        return embeddings

    def targets(self, views: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        return super().targets(views[:2], embeddings[:2])

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        u, v = unit(embeddings), unit(targets)
        source = v if self.config.correlation_source == "momentum" else u[:2]
        of_batch = mean_over_ranks(batch_correlation(torch.cat(source)))
        before = None if moment.step == 0 else self.correlation
        F = update_correlation(before, of_batch, self.config.rho)
        self.correlation.copy_(F)

        positives = multicrop_positives((v[0], v[1]), len(u) - 2)
        if self.cutmix is not None:
            mixes = self._mixes(batch.views, moment)
            positives = [_mixed_positive(p, mix) for p, mix in zip(positives, mixes, strict=True)]
        losses = [unigrad_loss(z, p, F, self.config.lam) for z, p in zip(u, positives, strict=True)]
        return Outcome(torch.stack(losses).mean(), queries=u[0], keys=v[1])

    def _mixes(self, views: Sequence[Tensor], moment: Moment) -> list[CutMix]:
        """Draw one mix of the global batch for each view; places in the batch stand for its images."""
        assert self.cutmix is not None
        size = len(views[0]) * world_size()
        return [
            draw_cutmix(self.cutmix, self.seed, moment.step, torch.arange(size) + n * size, view.shape[-1])
            for n, view in enumerate(views)
        ]


def _mixed(view: Tensor, mix: CutMix) -> Tensor:
    """Paste patches of the global batch's images into this rank's."""
    b, own = len(view), _on(mix, view.device, own_slice)
    partners = torch.arange(b, 2 * b, device=view.device).repeat(2)
    # The partners' views are laid behind this rank's own; what is pasted into them is thrown away.
    beside = CutMix(partners, own.box.repeat(2, 1), own.kept.repeat(2))
    return paste(torch.cat([view, rows_of_batch(view, mix.partner)]), beside)[:b]


def _mixed_positive(v: Tensor, mix: CutMix) -> Tensor:
    mix = _on(mix, v.device)
    return own_slice(positive_mixture(gather(v), mix.partner, mix.kept))


def _on(mix: CutMix, device: torch.device, part: Callable[[Tensor], Tensor] = lambda x: x) -> CutMix:
    return CutMix(*(copied_to(part(x), device) for x in (mix.partner, mix.box, mix.kept)))
