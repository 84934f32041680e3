"""What readers call evaluations and metrics."""

from typing import Any

import pytest

from carryover.transfer.report.collection import what
from carryover.transfer.report.naming import metric_name
from carryover.transfer.results.record import Metric
from tests.transfer.records import record
from tests.transfer.report.gathered import gathered, tables_of


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


def test_data_sets_of_one_recipe_are_told_apart_by_their_names_and_by_a_digest_only_if_these_are_equal() -> (
    None
):
    def captions(*named: tuple[str, str]) -> list[str]:
        labeled = {"label_fraction": 0.01}
        records = [record(dataset=n, data_digest=d * 64, **labeled) for n, d in named]
        return list(gathered(*records).captions.values())

    assert captions(("plants", "1"), ("cells", "2")) == [
        "1 % of the labels, cells",
        "1 % of the labels, plants",
    ]
    assert captions(("plants", "1"), ("plants", "2")) == [
        "1 % of the labels, data 11111111",
        "1 % of the labels, data 22222222",
    ]


def test_a_record_from_before_data_of_ones_own_had_a_name_joins_those_of_the_same_data() -> None:
    old = record(50.0, dataset="my data", data_digest="1" * 64)
    new = record(60.0, dataset="plants", data_digest="1" * 64, seed=1)
    (table,) = tables_of(old, new)
    assert table.title == "Fine-tuning, plants" and table.rows[0].cells[0].n == 2
    assert tables_of(old)[0].title == "Fine-tuning, my data"
