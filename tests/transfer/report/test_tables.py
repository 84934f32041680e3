"""Numbers share a cell only when they differ in nothing but their seed."""

import numpy as np
import pytest

from carryover.transfer.report.tables import build_full_tables
from carryover.transfer.results.record import Metric, ResultRecord, Setting
from tests.transfer.records import record
from tests.transfer.report.gathered import gathered, tables_of


def test_a_cell_is_the_mean_and_the_sample_deviation_over_seeds() -> None:
    values = [50.0, 53.0, 58.0]
    (table,) = tables_of(*(record(v, seed=s) for s, v in enumerate(values)))
    cell = table.rows[0].cells[0]
    assert cell.mean == pytest.approx(np.mean(values))
    assert cell.std == pytest.approx(np.std(values, ddof=1))
    assert (cell.n, cell.over, cell.text()) == (3, "evaluation seeds", "53.7 ± 4.0")


def test_several_pretrainings_are_the_unit_of_the_spread() -> None:
    values = {(0, 0): 50.0, (0, 1): 52.0, (1, 0): 60.0, (1, 1): 64.0}
    runs = [
        record(v, pretrain_seed=p, seed=s, checkpoint_sha256="cd"[p] * 64) for (p, s), v in values.items()
    ]
    (table,) = tables_of(*runs)
    cell = table.rows[0].cells[0]
    assert cell.values == (51.0, 62.0) and cell.over == "pretraining seeds"
    assert "2 pretraining seeds" in table.spreads()


def test_one_run_has_no_spread() -> None:
    (table,) = tables_of(record(50.04))
    assert table.rows[0].cells[0].text() == "50.0"
    assert table.spreads().startswith("Single runs")


@pytest.mark.parametrize(
    "change",
    [
        {"recipe_hash": "c" * 64},
        {"split": "test"},
        {"backend": "detectron2"},
        {"backend_version": "0.30"},
        {"selection": "best", "selected_on": "held-out"},
    ],
)
def test_what_is_not_comparable_is_not_in_one_column(change: dict[str, str]) -> None:
    (table,) = tables_of(record(), record(**change))
    assert len(table.columns) == 2
    assert len({g.heading for g in table.groups}) == 2


def test_another_data_set_has_a_table_of_its_own() -> None:
    assert [t.title for t in tables_of(record(), record(dataset="cifar10"))] == [
        "Fine-tuning, cifar10",
        "Fine-tuning, shapes",
    ]


@pytest.mark.parametrize("change", [{"backbone": "resnet50"}, {"pretrain_epochs": 800.0}, {"method": "simo"}])
def test_another_pretraining_is_another_row(change: dict[str, object]) -> None:
    (table,) = tables_of(record(), record(**change))
    assert len({r.label for r in table.rows}) == 2


def test_shares_of_the_labels_stand_side_by_side_smallest_first() -> None:
    metrics = (Metric(name="top5", value=90.0, n=5), Metric(name="top1", value=60.0, n=5))
    (table,) = tables_of(
        record(metrics=metrics, label_fraction=0.1, recipe_hash="1" * 64),
        record(metrics=metrics, label_fraction=0.01, recipe_hash="2" * 64),
    )
    assert [(g.heading, c.heading) for g, c in table.columns] == [
        ("1 % of the labels", "Top 1"),
        ("1 % of the labels", "Top 5"),
        ("10 % of the labels", "Top 1"),
        ("10 % of the labels", "Top 5"),
    ]


def test_boxes_and_masks_have_columns_as_in_table_8_and_the_rest_a_table_of_its_own() -> None:
    names = ["AP", "AP50", "AP75", "APs"]
    kinds: tuple[dict[str, Setting], ...] = ({}, {"of": "mask"})
    metrics = tuple(Metric(name=n, params=p, value=30.0, n=9) for p in kinds for n in names)
    run = record(metrics=metrics, task="detection", model="Mask R-CNN FPN")
    (table,) = tables_of(run)
    assert [(g.heading, [c.heading for c in g.columns]) for g in table.groups] == [
        ("Mask R-CNN FPN box", ["AP", "AP50", "AP75"]),
        ("Mask R-CNN FPN mask", ["AP", "AP50", "AP75"]),
    ]
    (full,) = build_full_tables(gathered(run))
    assert [c.metric for _, c in full.columns] == names + [f"mask {n}" for n in names]


def test_segmentation_has_a_table_a_data_set_and_a_group_a_backend() -> None:
    metrics = tuple(Metric(name=n, value=v, n=9) for n, v in (("mIoU", 50.0), ("aAcc", 90.0), ("mAcc", 60.0)))
    shared = {"task": "segmentation", "dataset": "VOC 2012 aug", "model": "FCN-d8"}
    ours = record(metrics=metrics, **shared)
    theirs = record(metrics=metrics, backend="mmsegmentation", backend_version="1.2.2", **shared)
    (table,) = tables_of(ours, theirs)
    assert table.title == "Semantic segmentation, VOC 2012 aug"
    assert [c.heading for _, c in table.columns] == ["mIoU", "aAcc", "mAcc"] * 2
    headings = [g.heading for g in table.groups]
    assert len(set(headings)) == 2
    assert all("FCN-d8" in h for h in headings)


def test_a_table_has_at_most_twelve_columns() -> None:
    runs = [record(recipe=f"r{i}", recipe_hash=f"{i:x}" * 64, seed=0) for i in range(15)]
    tables = tables_of(*runs)
    assert [len(t.columns) for t in tables] == [12, 3]
    assert [t.title for t in tables] == ["Fine-tuning, shapes (1 of 2)", "Fine-tuning, shapes (2 of 2)"]


def test_every_cell_leads_to_its_records_and_checkpoints() -> None:
    (table,) = tables_of(record(seed=0), record(seed=1))
    sources = table.rows[0].cells[0].sources
    assert [(str(s.path), s.number, s.seed, s.checkpoint_sha256) for s in sources] == [
        ("0/result.json", 1, 0, "a" * 64),
        ("1/result.json", 2, 1, "a" * 64),
    ]


def test_best_and_second_of_a_column_are_marked_by_the_metrics_own_direction() -> None:
    def run(name: str, error: float) -> ResultRecord:
        metrics = (
            Metric(name="error", value=error, direction="lower", n=1),
            Metric(name="top1", value=error, n=1),
        )
        return record(metrics=metrics, pretrain_recipe=name, task="other")

    (table,) = tables_of(run("a", 10.0), run("b", 20.0), run("c", 30.0))
    assert {r.label: [c.rank for c in r.cells] for r in table.rows} == {"a": [1, 0], "b": [2, 2], "c": [0, 1]}


def test_an_undefined_number_is_shown_as_such() -> None:
    (table,) = tables_of(record(None))
    assert table.rows[0].cells[0].text() == "–"


def test_baselines_come_first() -> None:
    methods = ["unigrad", "supervised", "random", "byol"]
    (table,) = tables_of(*(record(method=m, pretrain_recipe=m) for m in methods))
    assert [r.label for r in table.rows] == ["Random initialization", "Supervised", "BYOL", "UniGrad"]
