"""Numbers share a cell only when they differ in nothing but their seed."""

from pathlib import Path

import numpy as np
import pytest

from tests.transfer.records import record
from transfer.report.findings import findings
from transfer.report.tables import Table, build_tables
from transfer.results import Metric, ResultRecord, StoredRecord, to_frame


def tables_of(*records: ResultRecord) -> list[Table]:
    return build_tables(to_frame(StoredRecord(Path(f"{i}/result.json"), r) for i, r in enumerate(records)))


def test_a_cell_is_the_mean_and_the_sample_deviation_over_seeds() -> None:
    values = [50.0, 53.0, 58.0]
    (table,) = tables_of(*(record(v, seed=s) for s, v in enumerate(values)))
    cell = table.rows[0].cells[0]
    assert cell.mean == pytest.approx(np.mean(values))
    assert cell.std == pytest.approx(np.std(values, ddof=1))
    assert (cell.n, cell.text()) == (3, "53.7 ± 4.0 (3)")


def test_one_run_has_no_spread() -> None:
    (table,) = tables_of(record(50.04))
    assert table.rows[0].cells[0].text() == "50.0"


@pytest.mark.parametrize(
    "change",
    [
        {"recipe_hash": "c" * 64},
        {"dataset": "cifar10"},
        {"split": "test"},
        {"backend": "detectron2"},
        {"backend_version": "0.30"},
        {"selection": "best", "selected_on": "held-out"},
    ],
)
def test_what_is_not_comparable_is_not_in_one_table(change: dict[str, str]) -> None:
    assert len(tables_of(record(), record(**change))) == 2


@pytest.mark.parametrize("change", [{"backbone": "resnet50"}, {"pretrain_epochs": 800.0}, {"method": "simo"}])
def test_another_pretraining_is_another_row(change: dict[str, object]) -> None:
    (table,) = tables_of(record(), record(**change))
    assert len(table.rows) == 2


def test_every_cell_leads_to_its_records_and_checkpoints() -> None:
    (table,) = tables_of(record(seed=0), record(seed=1, checkpoint_sha256="d" * 64))
    sources = table.rows[0].cells[0].sources
    assert [(s.record, s.seed, s.checkpoint_sha256[0]) for s in sources] == [
        ("0/result.json", 0, "a"),
        ("1/result.json", 1, "d"),
    ]


def test_the_best_of_a_column_is_marked_by_the_metrics_own_direction() -> None:
    def run(name: str, error: float) -> ResultRecord:
        metrics = (
            Metric(name="error", value=error, higher_is_better=False, n=1),
            Metric(name="top1", value=error, n=1),
        )
        return record(metrics=metrics, pretrain_recipe=name)

    (table,) = tables_of(run("a", 10.0), run("b", 20.0))
    assert {r.label: [c.best for c in r.cells] for r in table.rows} == {
        "a": [True, False],
        "b": [False, True],
    }


def test_an_undefined_number_is_shown_as_such() -> None:
    (table,) = tables_of(record(None))
    assert table.rows[0].cells[0].text() == "–"


def test_a_finding_says_whether_the_seeds_could_explain_it() -> None:
    baseline = {"method": "random", "pretrain_recipe": "random_init"}
    runs = [record(v, seed=s) for s, v in enumerate((60.0, 62.0))]
    runs += [record(v, seed=s, **baseline) for s, v in enumerate((50.0, 51.0))]
    runs += [record(v, seed=s, method="simo", pretrain_recipe="simo") for s, v in enumerate((49.0, 53.0))]
    found = {f.row.label: f for f in findings(tables_of(*runs))}
    assert found["unigrad_demo"].difference == pytest.approx(10.5)
    assert found["unigrad_demo"].spread == pytest.approx(np.sqrt(2.0 + 0.5))
    assert found["unigrad_demo"].verdict == "beyond"
    assert found["simo"].verdict == "within"
