"""What readers call evaluations and metrics."""

import pytest

from carryover.transfer.report.collection import what
from carryover.transfer.report.naming import metric_name
from tests.transfer.records import record


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("top1", "Top 1"),
        ("top1 k=20 T=0.07", "Top 1, k 20, T 0.07"),
        ("mask AP50", "mask AP50"),
        ("KL divergence", "KL divergence"),
    ],
)
def test_headings_of_metrics(name: str, heading: str) -> None:
    assert metric_name(name) == heading


@pytest.mark.parametrize(
    ("task", "fraction", "name"),
    [
        ("finetune", 0.01, "1 % of the labels"),
        ("finetune", 1.0, "100 % of the labels"),
        ("knn", 1.0, "k-nearest neighbours"),
        ("linear_cached", 1.0, "Linear evaluation of cached features"),
        ("linear", 0.1, "Linear evaluation, 10 % of the labels"),
    ],
)
def test_an_evaluation_is_called_after_its_task_or_its_share_of_the_labels(
    task: str, fraction: float, name: str
) -> None:
    assert what(record(task=task, label_fraction=fraction)) == name
