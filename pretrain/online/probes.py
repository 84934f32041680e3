"""Probes without training: nearest neighbors, and a linear classifier in closed form."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot


@torch.no_grad()
def knn_accuracy(
    queries: Tensor, truth: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int = 20, tau: float = 0.07
) -> float:
    """Return top-1 accuracy in percent of the vote of the k nearest, weighted by exp(cosine / tau).

    The protocol of NPID (Wu et al. 2018) on features (M, D) and (N, D).
    """
    bank, queries = normalize(bank.float(), dim=1), normalize(queries.float(), dim=1)
    correct = torch.zeros((), dtype=torch.int64, device=queries.device)
    for some, wanted in zip(queries.split(512), truth.split(512), strict=True):
        similarity, nearest = (some @ bank.T).topk(min(k, len(bank)), dim=1)
        votes = torch.zeros(len(some), classes, device=some.device)
        # Relative to the nearest neighbor: the same order of classes, and no overflow.
        votes.scatter_add_(1, labels[nearest], ((similarity - similarity[:, :1]) / tau).exp())
        correct += (votes.argmax(1) == wanted).sum()
    return 100 * int(correct) / len(truth)


@torch.no_grad()
def linear_accuracy(
    queries: Tensor, truth: Tensor, train: Tensor, labels: Tensor, classes: int, penalty: float = 0.1
) -> float:
    """Return top-1 accuracy in percent of a linear classifier, fitted to labels by ridge regression.

    min |X W - Y|^2 / N + penalty |W|^2, X standardized by the training features (N, D) and Y the centerd
    one-hot labels: solved in closed form by whichever of the (D, D) and (N, N) systems is smaller, in float64
    on the CPU. It has no state that would have to be saved, and no rate that would have to be chosen.
    """
    x, q = train.double().cpu(), queries.double().cpu()
    mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0)
    # A dimension that never changes says nothing; divided by one it stays at zero.
    deviation = torch.where(deviation > 0, deviation, 1.0)
    x, q = (x - mean) / deviation, (q - mean) / deviation
    y = one_hot(labels.cpu(), classes).double()
    offset = y.mean(dim=0)
    n, d = x.shape
    ridge = penalty * n
    if n < d:
        weight = x.T @ torch.linalg.solve(x @ x.T + ridge * torch.eye(n, dtype=x.dtype), y - offset)
    else:
        weight = torch.linalg.solve(x.T @ x + ridge * torch.eye(d, dtype=x.dtype), x.T @ (y - offset))
    guesses = (q @ weight + offset).argmax(dim=1)
    return 100 * int((guesses == truth.cpu()).sum()) / len(truth)
