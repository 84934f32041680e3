"""Published rows stand beside ours where protocol, data and backbone are the same; others stand apart."""

import re
from pathlib import Path
from typing import Any

import pytest

from carryover.configs import load
from carryover.transfer.report.beside import OTHER_PROTOCOL, SAME_PROTOCOL
from carryover.transfer.report.content import Content, Pictures, build_content
from carryover.transfer.report.latex import latex
from carryover.transfer.report.markdown import markdown
from carryover.transfer.report.page import page
from carryover.transfer.report.tables import reproductions
from carryover.transfer.results.reading import StoredRecord
from carryover.transfer.results.record import ResultRecord
from tests.transfer.report.followed import run_of
from tests.transfer.report.gathered import tables_of

LIBRARY = "published with Detectron2; ours: torchvision"
HALF = "ours: 8 images per step, rate and schedule scaled linearly (published recipe: 16)"


def voc_run(*overrides: str, **changes: Any) -> ResultRecord:
    """Return a record of UniGrad under the shipped recipe of UniGrad's Table 8."""
    metrics = {"AP": 57.0, "AP50": 84.5, "AP75": 64.9}
    return run_of("voc0712_fpn_24k", *overrides, metrics=metrics, **changes)


def c4_run(*overrides: str, **changes: Any) -> ResultRecord:
    """Return a record under the recipe of SqrtKL's Tables 2 and 4."""
    metrics = {"AP": 56.0, "AP50": 82.0, "AP75": 62.0}
    return run_of("voc0712_c4_24k", *overrides, metrics=metrics, method="sqrtkl", **changes)


def semi_run(*overrides: str, **changes: Any) -> ResultRecord:
    """Return a record of UniGrad on one per cent of the labels, as UniGrad's Table 11 reports it."""
    metrics = {"top1": 58.0, "top5": 82.0}
    return run_of("simclr_1percent", *overrides, metrics=metrics, label_fraction=0.01, **changes)


def content_of(*records: ResultRecord) -> Content:
    return build_content("t", [StoredRecord(Path(f"{i}/result.json"), r) for i, r in enumerate(records)], [])


def html_of(*records: ResultRecord) -> str:
    return page(content_of(*records), Pictures((), (), (), (), (), (), ()), Path("out"))


def test_the_papers_rows_stand_below_ours() -> None:
    (table,) = tables_of(voc_run())
    assert [r.label for r in table.published.same] == ["Supervised", "MoCo v2", "SimCLR", "DINO", "UniGrad"]
    assert table.published.same[-1].values == (57.8, 84.0, 64.9)
    assert table.published.same[-1].where == "Tao et al. 2022, Table 8"


def test_a_row_that_was_measured_with_another_head_stands_apart() -> None:
    (table,) = tables_of(voc_run())
    (row,) = table.published.others
    assert row.label == "TWIST" and row.values == (58.1, 84.2, 65.4)
    assert row.own_protocol == "TWIST's code: a box head of four convolutions and one linear layer"


def test_the_difference_to_the_published_row_of_the_same_method_is_told() -> None:
    (table,) = tables_of(voc_run(pretrain_epochs=800.0))
    (told,) = reproductions(table)
    assert told.startswith("UniGrad beside UniGrad of Tao et al. 2022, Table 8: ")
    assert "AP -0.8 (57.0, published 57.8)" in told and "AP50 +0.5" in told


def test_a_published_row_of_unsaid_epochs_is_told_as_such() -> None:
    (table,) = tables_of(voc_run(method="simclr"))
    (told,) = reproductions(table)
    assert told.startswith(
        "SimCLR beside SimCLR of Tao et al. 2022, Table 8; the paper does not say after how"
    )


def test_the_difference_to_a_row_of_another_protocol_is_told_with_that_protocol() -> None:
    (table,) = tables_of(semi_run(pretrain_epochs=800.0))
    (told,) = reproductions(table)
    assert told.startswith(
        'UniGrad beside UniGrad of Tao et al. 2022, Table 11; its protocol: "the standard protocol" of SimCLR'
    )
    assert "Top 1 -2.8 (58.0, published 60.8)" in told


@pytest.mark.parametrize(
    "run",
    [voc_run("solver.base_lr=0.01"), voc_run(dataset="VOC 07"), voc_run(backbone="resnet18")],
    ids=["another rate", "other data", "another backbone"],
)
def test_no_published_row_stands_beside_another_protocol(run: ResultRecord) -> None:
    (table,) = tables_of(run)
    assert table.published.rows == () and table.deviations == ()


def test_a_row_of_other_epochs_is_no_reproduction() -> None:
    run = run_of("voc07_c4", metrics={"AP": 40.0}, method="sqrtkl", pretrain_epochs=100.0)
    (table,) = tables_of(run)
    assert "SqrtKL" in [r.label for r in table.published.same] and reproductions(table) == []


def test_a_pipelines_label_hides_no_row() -> None:
    entries = load("pipelines", "sqrtkl_tables_2_4_5").evaluate
    label = next(e.label for e in entries if e.recipe == "voc0712_c4_24k" and e.label)
    (plain,), (table,) = tables_of(c4_run()), tables_of(c4_run(recipe=label))
    assert len(table.published.rows) == 16
    assert table.published == plain.published


def test_a_deviation_is_stated_of_the_evaluation_that_has_it() -> None:
    (table,) = tables_of(c4_run("backend=detectron2"), voc_run("solver.ims_per_batch=8"))
    letters = {group.evaluation.backend: group.note for group in table.groups}
    assert table.deviations == ((letters["torchvision"], LIBRARY), (letters["torchvision"], HALF))


def test_nothing_is_stated_where_ours_is_as_published() -> None:
    (table,) = tables_of(c4_run("backend=detectron2"))
    assert table.published.same and table.deviations == ()


def test_a_paper_s_row_is_divided_where_one_of_its_columns_has_another_protocol() -> None:
    """SimSiam's VOC 07 is our protocol; its VOC 07+12 has 12 train where ours has 12 trainval."""
    voc07 = run_of("voc07_c4", metrics={"AP": 40.0, "AP50": 70.0, "AP75": 41.0}, method="sqrtkl")
    (table,) = tables_of(voc07, c4_run())
    data = [group.evaluation.dataset for group, _ in table.columns]
    same, apart = (
        next(r for r in rows if r.method == "byol") for rows in (table.published.same, table.published.others)
    )
    for at, title in enumerate(data):
        assert (same.values[at] is not None) == (title == "VOC 07")
        assert (apart.values[at] is not None) == (title == "VOC 07+12")
    assert apart.own_protocol == "trained on 07 trainval + 12 train; mean of 5 trials"
    assert apart.where == "Cao and Wu 2023, Table 4, from SimSiam (Chen and He 2021)"


def test_table_11s_rows_stand_apart_in_the_page() -> None:
    text = html_of(semi_run())
    same, apart = (text.index(heading) for heading in (SAME_PROTOCOL, OTHER_PROTOCOL))
    assert same < text.index("SimCLR<small>") < apart
    rows = ["Barlow Twins<small>", "BYOL<small>", "UniGrad<small>resnet50, 800 epochs", "TWIST<small>"]
    assert all(text.index(row) > apart for row in rows)
    own = re.findall(r'<small class="own">(.*?)</small>', text)
    assert len(own) == 6
    assert any("rates 0.002 (backbone) and 0.5 (head), 20 epochs, best epoch" in o for o in own)


def test_table_11s_rows_stand_apart_in_markdown_and_latex() -> None:
    text = markdown(content_of(semi_run()))
    rows = [line for line in text.splitlines() if line.startswith("| published")]
    assert [row.startswith("| published, other protocol: ") for row in rows] == [False] + 6 * [True]
    assert "20 epochs, best epoch" in next(row for row in rows if "Barlow Twins" in row)

    table = latex(content_of(semi_run()))
    body, caption = table.split(r"\end{tabular}")[0], re.findall(r"\\caption\{(.*)\}", table)[0]
    same, apart = body.split(r"\midrule")[-2:]
    assert "SimCLR (Tao" in same and apart.count(r"\\") == 6
    mark = re.search(r"Barlow Twins(\$\^\{\d\}\$)", apart)
    assert mark and f"{mark[1]} Published, other protocol: Barlow Twins' own protocol" in caption


@pytest.mark.parametrize(
    "write", [html_of, lambda r: markdown(content_of(r)), lambda r: latex(content_of(r))]
)
def test_every_format_states_the_deviations(write: Any) -> None:
    text = write(c4_run("solver.ims_per_batch=8"))
    assert LIBRARY in text and HALF in text
    as_published = write(c4_run("backend=detectron2"))
    assert "published with" not in as_published and "scaled linearly" not in as_published
