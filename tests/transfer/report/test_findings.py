"""A finding says whether the seeds could explain it."""

import numpy as np
import pytest

from carryover.transfer.report.findings import Summary, differences, summarize
from carryover.transfer.report.statistics import welch
from carryover.transfer.results.record import Metric, ResultRecord
from tests.transfer.records import record
from tests.transfer.report.gathered import tables_of


def runs(method: str, *values: float, backbone: str = "resnet18") -> list[ResultRecord]:
    name = f"{method}_demo"
    return [
        record(v, seed=s, method=method, pretrain_recipe=name, backbone=backbone)
        for s, v in enumerate(values)
    ]


def summary_of(*records: ResultRecord) -> Summary:
    (summary,) = summarize(tables_of(*records))
    return summary


def test_a_difference_is_judged_by_the_spread_of_both() -> None:
    summary = summary_of(*runs("random", 50.0, 51.0), *runs("unigrad", 60.0, 62.0), *runs("simo", 49.0, 53.0))
    found = {f.label: f for f in summary.findings}
    assert found["UniGrad"].difference == pytest.approx(10.5)
    assert found["UniGrad"].spread == pytest.approx(np.sqrt(2.0 + 0.5))
    assert (found["UniGrad"].verdict, found["SiMo"].verdict) == ("beyond", "within")
    assert found["UniGrad"].interval == welch([60.0, 62.0], [50.0, 51.0])


def test_the_lead_counts_what_beats_random_initialization_and_names_the_best_method() -> None:
    lead = summary_of(
        *runs("random", 50.0, 51.0),
        *runs("unigrad", 60.0, 62.0),
        *runs("simo", 49.0, 53.0),
        *runs("byol", 20.0, 21.0),
        *runs("supervised", 80.0, 82.0),
    ).lead()
    assert lead.startswith(
        "2 of 4 pretrainings beat random initialization by more than the seed-to-seed spread,"
        " 1 with no difference found, 1 is worse by more than it. Best: UniGrad +10.5 (95 % interval"
    )


def test_single_runs_are_not_judged() -> None:
    summary = summary_of(*runs("random", 50.0), *runs("unigrad", 60.0), *runs("simo", 40.0))
    assert {f.verdict for f in summary.findings} == {"one run"}
    assert "1 of 2 single runs better than random initialization, with no spread" in summary.lead()


def test_seeds_that_draw_nothing_are_judged_by_the_test_images() -> None:
    def repeated(method: str, value: float) -> list[ResultRecord]:
        name = f"{method}_demo"
        metrics = (Metric(name="top1", value=value, n=12, low=value - 20.0, high=value + 20.0),)
        return [record(metrics=metrics, seed=s, method=method, pretrain_recipe=name) for s in (0, 1)]

    records = [*repeated("random", 50.0), *repeated("unigrad", 58.3)]
    (finding,) = summary_of(*records).findings
    assert (finding.verdict, finding.over) == ("within", "images")
    assert finding.interval is not None and finding.interval.low < 0 < finding.interval.high
    (table,) = tables_of(*records)
    cell = next(c for row in table.rows for c in row.cells if c.mean == 58.3)
    assert (cell.text(), cell.brackets()) == ("58.3 ± 0.0", "[38.3, 78.3]")
    assert "of several that gave one number over the test images" in table.spreads()


def test_a_backbone_is_compared_with_its_own_random_initialization() -> None:
    records = [
        *runs("random", 10.0),
        *runs("random", 20.0, backbone="resnet50"),
        *runs("unigrad", 25.0, backbone="resnet50"),
    ]
    summary = summary_of(*records)
    assert summary.heading.endswith("resnet50") and summary.findings[0].difference == 5.0


def test_without_random_initialization_there_is_no_finding() -> None:
    assert summarize(tables_of(*runs("unigrad", 60.0, 61.0))) == []


def test_reruns_that_disagree_found_nothing() -> None:
    clash = record(10.0, seed=0, method="unigrad", pretrain_recipe="unigrad_demo")
    assert summarize(tables_of(*runs("random", 50.0), *runs("unigrad", 60.0), clash)) == []


def test_any_two_pretrainings_are_compared() -> None:
    (found,) = differences(tables_of(*runs("byol", 50.0, 51.0), *runs("unigrad", 60.0, 62.0)))
    assert found.labels == ("BYOL", "UniGrad")
    assert found.intervals[1][0] == welch([60.0, 62.0], [50.0, 51.0])
    assert found.intervals[0][0] is None


def test_a_best_difference_that_rounds_to_zero_is_printed_without_a_sign() -> None:
    summary = summary_of(*runs("random", 50.0, 50.2), *runs("unigrad", 49.98, 50.18))
    assert "Best: UniGrad 0.0 (95 % interval" in summary.lead()
