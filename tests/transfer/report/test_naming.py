"""What readers call evaluations and metrics."""

from typing import Any

import pytest

from carryover.transfer.report.collection import what
from carryover.transfer.report.naming import metric_name
from carryover.transfer.results.record import Metric
from tests.transfer.records import record


@pytest.mark.parametrize(
    ("name", "params", "label", "heading"),
    [
        ("top1", {}, "top1", "Top 1"),
        ("top1", {"k": 20, "T": 0.07}, "top1 k=20 T=0.07", "Top 1, k 20, T 0.07"),
        ("mAP", {"positives": 4}, "mAP positives=4", "mAP, positives 4"),
        ("AP50", {"of": "mask"}, "mask AP50", "AP50"),
        ("KL divergence", {}, "KL divergence", "KL divergence"),
    ],
)
def test_labels_and_headings_of_metrics(name: str, params: dict[str, Any], label: str, heading: str) -> None:
    metric = Metric(name=name, params=params, value=1.0, n=1)
    assert (metric.label, metric_name(metric)) == (label, heading)


@pytest.mark.parametrize(
    ("task", "fraction", "name"),
    [
        ("finetune", 0.01, "1 % of the labels"),
        ("finetune", 1.0, "100 % of the labels"),
        ("knn", 1.0, "k-nearest neighbors"),
        ("linear_cached", 1.0, "Linear evaluation of cached features"),
        ("linear", 0.1, "Linear evaluation, 10 % of the labels"),
    ],
)
def test_an_evaluation_is_called_after_its_task_or_its_share_of_the_labels(
    task: str, fraction: float, name: str
) -> None:
    assert what(record(task=task, label_fraction=fraction)) == name
