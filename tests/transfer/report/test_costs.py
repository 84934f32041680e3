"""What the numbers cost stands beside them, as the records say, and only where they do."""

import re
from pathlib import Path
from typing import Any

import pytest

from carryover.transfer.report import write_report
from carryover.transfer.report.costs import CostColumn, CostTable, build_cost_tables
from carryover.transfer.results.record import ResultRecord, write_record
from tests.transfer.records import record
from tests.transfer.report.gathered import gathered


def run(method: str = "unigrad", pretrain_seed: int = 0, **changes: Any) -> ResultRecord:
    """Return a record of a pretraining whose checkpoint is its own."""
    digit = f"{len(method) % 10}{pretrain_seed}"
    own = {"pretrain_recipe": method, "checkpoint_sha256": digit * 32, "pretrain_seed": pretrain_seed}
    return record(method=method, **(own | changes))


def by_row(table: CostTable) -> dict[str, dict[str, float | None]]:
    """Return the known values of a table by row and column."""
    return {r.label: dict(zip([c.heading for c in table.columns], r.values)) for r in table.rows}


def test_a_pretraining_has_the_mean_of_its_checkpoints_however_often_it_was_evaluated() -> None:
    records = [
        run(pretrain_seed=0, seed=0, pretrain_gpu_hours=8.0, pretrain_wall_seconds=3600.0),
        run(pretrain_seed=0, seed=1, pretrain_gpu_hours=8.0, pretrain_wall_seconds=3600.0),
        run(pretrain_seed=1, seed=0, pretrain_gpu_hours=10.0, pretrain_wall_seconds=7200.0),
    ]
    pretrainings, _ = build_cost_tables(gathered(*records))
    (row,) = by_row(pretrainings).values()
    assert row["GPU-hours each"] == 9.0 and row["wall time each"] == 1.5
    assert row["checkpoints"] == 2 and row["evaluations"] == 3


def test_rows_and_columns_keep_the_order_of_the_results() -> None:
    methods = ["unigrad", "supervised", "random", "byol"]
    records = [run(m, pretrain_wall_seconds=60.0, seed=s) for m in methods for s in range(2)]
    ten = [run(m, recipe="ten", recipe_hash="c" * 64, label_fraction=0.1) for m in methods]
    pretrainings, evaluations = build_cost_tables(gathered(*records, *ten))
    assert [r.label for r in pretrainings.rows] == ["Random initialization", "Supervised", "BYOL", "UniGrad"]
    assert [r.label for r in evaluations.rows] == list(gathered(*records, *ten).captions.values())


def test_the_evaluations_costs_are_counted_once_a_trial() -> None:
    first = run(seed=0, wall_seconds=1800.0, gpu_hours=0.5, attempts=2, waiting_seconds=360.0)
    second = run(seed=1, wall_seconds=5400.0, gpu_hours=1.5, attempts=1, waiting_seconds=0.0)
    (evaluations,) = build_cost_tables(gathered(first, first, second))
    assert by_row(evaluations) == {
        "one_percent": {
            "runs": 2,
            "GPU-hours each": 1.0,
            "wall time each": 1.0,
            "waiting each": 0.05,
            "attempts each": 1.5,
            "GPU-hours in all": 2.0,
            "wall time in all": 2.0,
        }
    }


def test_what_nobody_knows_has_no_column_and_no_table() -> None:
    (evaluations,) = build_cost_tables(gathered(run(wall_seconds=36.0)))
    assert evaluations.what == "Evaluation"
    assert tuple(c.heading for c in evaluations.columns) == ("runs", "wall time each", "wall time in all")


def test_one_checkpoint_of_unknown_cost_leaves_the_mean_unknown() -> None:
    records = [
        run(pretrain_seed=0, pretrain_wall_seconds=3600.0),
        run(pretrain_seed=1),
        run("byol", pretrain_wall_seconds=60.0),
    ]
    pretrainings, _ = build_cost_tables(gathered(*records))
    assert by_row(pretrainings)["UniGrad"]["wall time each"] is None


def test_the_note_says_who_counted() -> None:
    records = [run(seed=s, cost_source="sacct") for s in range(2)] + [run(seed=2)]
    (evaluations,) = build_cost_tables(gathered(*records))
    assert evaluations.note == "Counted by SLURM's accounting (2), the evaluation itself (1). On 2 cores."


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3, "3"), (1234.5, "1,234"), (12.345, "12.3"), (1.006, "1.01"), (0.0042, "0.004")],
)
def test_a_number_has_the_digits_that_mean_anything(value: float, text: str) -> None:
    assert CostColumn("GPU-hours").text(value) == text


@pytest.mark.parametrize(("hours", "text"), [(0, "0:00:00"), (11, "11:00:00"), (100.4999, "100:30:00")])
def test_a_time_is_printed_as_a_clock_would(hours: float, text: str) -> None:
    assert CostColumn("wall time", time=True).text(hours) == text
    assert CostColumn("wall time", time=True).text(None) == ""


def test_every_format_shows_the_costs(tmp_path: Path) -> None:
    costs = {"pretrain_gpu_hours": 88.0, "pretrain_wall_seconds": 11 * 3600.0, "gpu_hours": 0.25}
    costs |= {"pretrain_peak_gpu_memory_gib": 15.25}
    for name in ("random", "simo"):
        write_record(run(name, **costs), tmp_path / name)
    write_report([tmp_path], tmp_path / "report", formats=["html", "md", "tex"])
    page, markdown, tex = (
        (tmp_path / "report" / name).read_text(encoding="utf-8")
        for name in ("index.html", "report.md", "tables.tex")
    )
    assert ">Cost</h2>" in page and page.count('<td data-v="88.0">88</td>') == 2
    assert "| SiMo | resnet18, 10 epochs | 1 | 88 | 11:00:00 | 15.2 | 1 | 0.25 | 0:00:03 |" in markdown
    assert r"SiMo (resnet18, 10 epochs) & 1 & 88 & 11:00:00 & 15.2 & 1 & 0.25 & 0:00:03 \\" in tex
    for spec, body in re.findall(r"\\begin\{tabular\}\{(lr+)\}(.*?)\\end\{tabular\}", tex, re.DOTALL):
        rows = [r for r in body.splitlines() if r.endswith(r"\\") and "multicolumn" not in r]
        assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(spec)}
