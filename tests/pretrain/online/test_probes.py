"""The probes against scikit-learn's neighbors and ridge regression."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from carryover.pretrain.online.probes import knn_accuracy, linear_accuracy


def _features(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    centers = torch.randn(3, d, generator=torch.Generator().manual_seed(9))
    return 0.7 * centers[labels] + torch.randn(n, d, generator=generator), labels


@pytest.mark.parametrize(("n", "d"), [(60, 10), (30, 80)])
def test_the_linear_classifier_is_ridge_regression_on_standardized_features(n: int, d: int) -> None:
    (x, y), (q, truth) = _features(n, d, 0), _features(45, d, 1)
    scaler = StandardScaler().fit(x.numpy())
    targets = np.eye(3)[y.numpy()]
    ridge = Ridge(alpha=0.1 * n).fit(scaler.transform(x.numpy()), targets)
    expected = (ridge.predict(scaler.transform(q.numpy())).argmax(1) == truth.numpy()).mean()
    assert 0.4 < expected < 1
    assert linear_accuracy(q, truth, x, y, 3) == pytest.approx(100 * expected)


def test_a_feature_that_never_changes_is_ignored() -> None:
    (x, y), (q, truth) = _features(60, 10, 0), _features(45, 10, 1)
    with_constant = [torch.cat([f, torch.full((len(f), 1), 7.0)], dim=1) for f in (x, q)]
    assert linear_accuracy(with_constant[1], truth, with_constant[0], y, 3) == linear_accuracy(
        q, truth, x, y, 3
    )


def test_the_vote_is_npids() -> None:
    (x, y), (q, truth) = _features(60, 10, 0), _features(45, 10, 1)
    a, b = (f.double() / f.double().norm(dim=1, keepdim=True) for f in (q, x))
    cosine = (a @ b.T).numpy()
    right = 0
    for row, wanted in zip(cosine, truth.tolist()):
        votes = np.zeros(3)
        for i in np.argsort(-row)[:5]:
            votes[int(y[i])] += np.exp(row[i] / 0.07)
        right += int(votes.argmax() == wanted)
    assert knn_accuracy(q, truth, x, y, 3, k=5) == pytest.approx(100 * right / 45)
