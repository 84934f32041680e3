"""Published rows stand beside ours only where recipe, data and backbone are the same."""

from typing import Any

import pytest

import transfer.config  # noqa: F401 (registers the kind)
from configs import load, recipe_hash
from tests.transfer.records import record
from tests.transfer.report.gathered import tables_of
from transfer.report.tables import reproductions
from transfer.results import Metric, ResultRecord


def voc_run(*overrides: str, **changes: Any) -> ResultRecord:
    """Return a record of UniGrad under the shipped recipe of UniGrad's Table 8."""
    recipe = load("transfer", "voc0712_fpn_24k", overrides)
    metrics = tuple(
        Metric(name=n, value=v, n=4952) for n, v in (("AP", 57.0), ("AP50", 84.5), ("AP75", 64.9))
    )
    fields: dict[str, Any] = {
        "task": "detection",
        "recipe": recipe.name,
        "recipe_hash": recipe_hash(recipe),
        "dataset": recipe.data.title,
        "backbone": "resnet50",
        "metrics": metrics,
    }
    return record(**(fields | changes))


def test_the_papers_rows_stand_below_ours() -> None:
    (table,) = tables_of(voc_run())
    assert [r.label for r in table.published] == [
        "Supervised",
        "MoCo v2",
        "SimCLR",
        "DINO",
        "TWIST",
        "UniGrad",
    ]
    assert table.published[-1].values == (57.8, 84.0, 64.9)
    assert table.published[-1].where == "Tao et al. 2022, Table 8"


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


@pytest.mark.parametrize(
    "run",
    [
        voc_run("solver.base_lr=0.01"),
        voc_run(dataset="VOC 07"),
        voc_run(backbone="resnet18"),
        voc_run(recipe="my_own"),
    ],
    ids=["another rate", "other data", "another backbone", "another recipe"],
)
def test_no_published_row_stands_beside_another_protocol(run: ResultRecord) -> None:
    (table,) = tables_of(run)
    assert table.published == ()


def test_a_row_of_other_epochs_is_no_reproduction() -> None:
    recipe = load("transfer", "voc07_c4")
    run = voc_run(
        recipe=recipe.name,
        recipe_hash=recipe_hash(recipe),
        dataset=recipe.data.title,
        method="sqrtkl",
        pretrain_epochs=100.0,
    )
    (table,) = tables_of(run)
    assert "SqrtKL" in [r.label for r in table.published] and reproductions(table) == []
