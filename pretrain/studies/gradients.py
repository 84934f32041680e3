"""Every method's gradient in the same embeddings: how alike the methods are, and where they part.

Source: Tao et al., "Exploring the Equivalence of Siamese Self-Supervised Learning via A Unified Gradient
Framework": the gradients of contrastive, asymmetric and decorrelating methods have one form, a positive and a
negative term, which Table 2 compares by what training makes of them and this study by the vectors themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from carryover.core.data.prepared import Batch
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.heads import Encoder
from carryover.pretrain.methods import DataFacts, Method, Moment, method_around
from carryover.pretrain.methods.instance import NPID, SqrtKL

# Each method's name in the table, and its recipe; the first ten are rows a to j of UniGrad's Table 2.
SUBJECTS: Mapping[str, str] = {
    "MoCo": "unigrad_table2a_moco",
    "SimCLR": "unigrad_table2b_simclr",
    "BYOL": "unigrad_table2c_byol",
    "DirectPred": "unigrad_table2d_directpred",
    "UniGrad": "unigrad_table2e_unigrad",
    "Barlow Twins": "unigrad_table2f_barlow_twins",
    "Barlow Twins, A = I": "unigrad_table2g_barlow_twins_without_a",
    "Barlow Twins, l2": "unigrad_table2h_barlow_twins_l2",
    "VICReg": "unigrad_table2i_vicreg",
    "VICReg, simplified": "unigrad_table2j_vicreg_simplified",
    "SimSiam": "simsiam_r50_100ep",
    "SiMo": "simo_r50_200ep_k256_a256",
    "MSBReg": "msbreg_imagenet100_r18_k8_s0.004_b0.5",
    "SqrtKL": "sqrtkl_imagenet_r50",
    "NPID": "npid_cifar10_r18",
    "MoCo v3": "moco_v3_vits_300ep",
}


@dataclass(frozen=True)
class TwoViews:
    """Embeddings (B, d) of two views of the same images, as the projector gives them."""

    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class GradientComparison:
    """n methods compared on one batch.

    Attributes
    ----------
    names
        The methods, in the order of rows and columns.
    cosine
        (n, n) cosine similarity of two methods' gradients, each taken as one vector of B x d numbers.
    norm
        (n,) norm of each of these vectors.
    """

    names: tuple[str, ...]
    cosine: Tensor
    norm: Tensor

    @property
    def norm_ratio(self) -> Tensor:
        """(n, n): the norm of the row's gradient in units of the column's."""
        return self.norm.unsqueeze(1) / self.norm.unsqueeze(0)


def overrides(method: str, batch_size: int, width: int) -> list[str]:
    """Overrides with which a recipe's method accepts a batch of this size and width."""
    changed = [f"batch_size={batch_size}", "optimizer.lr=null", "precision=fp32"]
    changed += [f"projector.out={width}"]
    if method == "simo":
        changed += [f"method.negatives={batch_size - 1}"]
    if method == "moco":
        changed += [f"method.queue={2 * batch_size}"]
    return changed


def compare_gradients(
    configs: Mapping[str, PretrainConfig], earlier: TwoViews, batch: TwoViews
) -> GradientComparison:
    """Take the gradient of every method's loss in the first view's embeddings of `batch`.

    The embeddings are the same for all methods, and so are the targets: those of the network itself, as in a
    momentum encoder at rest. What a method remembers (MoCo's queue, F, the bank) comes from the `earlier`
    batch of other images, and for the bank from the images' own second views.
    """
    gradients = [gradient(config, earlier, batch).double().flatten() for config in configs.values()]
    table = torch.stack(gradients)
    directions = normalize(table, dim=1)
    return GradientComparison(tuple(configs), directions @ directions.T, table.norm(dim=1))


def gradient(config: PretrainConfig, earlier: TwoViews, batch: TwoViews) -> Tensor:
    """The gradient (B, d) of a method's loss in the first view's embeddings, symmetrized if the method is."""
    count = len(batch.first)
    torch.manual_seed(config.seed)
    # Embeddings stand for images: the online network has nothing left to do.
    online = Encoder(_Copy(), nn.Identity(), False)
    method = method_around(online, config, DataFacts(2 * count, None))
    method.train()
    index = torch.arange(count)
    if isinstance(method, SqrtKL | NPID):
        method.bank.update(index, normalize(batch.second, dim=1))
        method.bank.update(index + count, normalize(earlier.second, dim=1))
    _loss(method, config, earlier, index + count, step=0)
    z = batch.first.clone().requires_grad_()
    (found,) = torch.autograd.grad(_loss(method, config, TwoViews(z, batch.second), index, step=1), z)
    return found


class _Copy(nn.Module):
    """Gives what it is given. `Identity` would give the very tensor, with its graph even under no_grad."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _loss(method: Method, config: PretrainConfig, views: TwoViews, index: Tensor, step: int) -> Tensor:
    seen: Sequence[Tensor] = [views.first, views.second]
    if config.augment.views == "single":
        seen = seen[:1]
    moment = Moment(step, 2, torch.Generator().manual_seed(config.seed + step))
    loss: Tensor = method(Batch(index, list(seen), None), moment).loss
    return loss
