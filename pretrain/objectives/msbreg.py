"""MSBReg: multiview centroid, singular value and Brownian diffusive regularisation.

Its loss is `centroid_loss` of the predictions + lambda_s `singular_value_loss` + lambda_b `brownian_loss` of
the online projections.

Source: Moon et al., "An Embedding-Dynamic Approach to Self-supervised Learning" (arXiv 2207.03552), its
supplement (Tables 4, 5: lambda_s 0.004, lambda_b 0.5, K 8 best). Public material gives the centroid and the
Brownian term; it describes the singular value term in words only ("pushes the particle system toward
spatially homogeneous density", "decorrelates the different feature dimensions"), so its formula here is our
choice.
"""

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from carryover.pretrain.objectives.precision import at_least_float32


@at_least_float32
def centroid_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean over images of 1 - cos(mean of the predictions, mean of the targets), the targets constants.

    predictions: (B, K, d) of the K views the online network saw; targets: (B, K', d). Views are l2-normalized
    before their mean is taken. With one view each this is half of BYOL's loss 2 - 2 cos.
    """
    online = normalize(predictions, dim=-1).mean(1)
    target = normalize(targets.detach(), dim=-1).mean(1)
    return 1 - (normalize(online, dim=1) * normalize(target, dim=1)).sum(1).mean()


def brownian_directions(num_images: int, width: int, generator: Generator) -> Tensor:
    """One random unit vector (B, d) an image: this step's random velocity, shared by the image's views."""
    return normalize(torch.randn(num_images, width, generator=generator, device=generator.device), dim=1)


@at_least_float32
def brownian_loss(embeddings: Tensor, directions: Tensor) -> Tensor:
    """Mean over images and views of cos(embedding, direction): a step of a random walk, zero in the mean.

    embeddings: (B, K, d); directions: (B, d) from `brownian_directions`.
    """
    return (normalize(embeddings, dim=-1) * directions.unsqueeze(1)).sum(-1).mean()


@at_least_float32
def singular_value_loss(embeddings: Tensor) -> Tensor:
    """Mean over views of the sum of (r s_i^2 / B - 1)^2 over the r = min(B, d) singular values s_i.

    embeddings: (B, K, d), the whole (all-ranks) batch. The singular values are of a view's matrix (B, d) of
    l2-normalized embeddings; the sum of their squares is B, so the loss is zero where all are equal. It is
    |r/B Z^T Z - I|^2 (or of Z Z^T where B < d), hence needs no decomposition. Our choice of form: lambda_s
    0.004 then weighs about what Barlow Twins' 0.005 weighs in the same sum of squares.
    """
    Z = normalize(embeddings, dim=-1).transpose(0, 1)
    num_images, width = Z.shape[1:]
    gram = Z.mT @ Z if num_images >= width else Z @ Z.mT
    r = gram.shape[-1]
    identity = torch.eye(r, dtype=Z.dtype, device=Z.device)
    return (r / num_images * gram - identity).square().sum((1, 2)).mean()
