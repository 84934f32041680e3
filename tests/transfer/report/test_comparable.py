"""Published numbers are matched by what was published; what deviates is allowed or not, and stated."""

from typing import Any

import pytest

from carryover.configs import load, recipe_hash
from carryover.transfer.report.comparable import ComparableNumber, comparable_numbers
from carryover.transfer.report.published import PublishedNumber
from carryover.transfer.results.record import ResultRecord
from tests.transfer.report.followed import run_of

LIBRARY = "published with Detectron2; ours: torchvision"


def voc_run(*overrides: str, **changes: Any) -> ResultRecord:
    """Return a record under the recipe of SqrtKL's Tables 2 and 4."""
    return run_of("voc0712_c4_24k", *overrides, metrics={"AP": 50.0}, **changes)


def numbers(found: tuple[ComparableNumber, ...]) -> set[PublishedNumber]:
    return {c.number for c in found}


def deviations(found: tuple[ComparableNumber, ...]) -> tuple[str, ...]:
    """Return the deviations, which are the same beside every number."""
    (stated,) = {c.deviations for c in found}
    return stated


@pytest.mark.parametrize(
    ("run", "stated"),
    [
        (voc_run(), (LIBRARY,)),
        (voc_run("backend=detectron2"), ()),
        (voc_run(recipe="table2_voc0712"), (LIBRARY,)),
        (voc_run("workers=1", "log_every=1", "seed=3", "data.root=elsewhere"), (LIBRARY,)),
        (
            voc_run("solver.ims_per_batch=8"),
            (
                LIBRARY,
                "ours: 8 images per step, rate and schedule scaled linearly (published recipe: 16)",
            ),
        ),
        (
            voc_run("solver.ims_per_batch=32", "solver.lr=0.04", "backend=detectron2"),
            ("ours: 32 images per step, rate and schedule scaled linearly (published recipe: 16)",),
        ),
        (
            voc_run("solver.precision=bf16", "backend=detectron2"),
            ("ours: bf16 arithmetic (published recipe: fp32)",),
        ),
    ],
    ids=[
        "as shipped",
        "Detectron2",
        "a label",
        "incidental keys",
        "half the batch",
        "twice the batch",
        "bf16",
    ],
)
def test_what_the_comparison_allows_hides_no_published_number(
    run: ResultRecord, stated: tuple[str, ...]
) -> None:
    found = comparable_numbers(run)
    assert numbers(found) == numbers(comparable_numbers(voc_run()))
    assert len(found) == 78
    assert deviations(found) == stated


@pytest.mark.parametrize(
    "run",
    [
        voc_run("solver.max_iter=23000"),
        voc_run("solver.ims_per_batch=8", "solver.base_lr=0.01"),
        voc_run("solver.ims_per_batch=8", "solver.reference_ims_per_batch=8"),
        voc_run("precise_bn=0"),
        voc_run("model.norm=SyncBN"),
        voc_run("data.train=[2007/trainval,2012/train]"),
        voc_run(dataset="VOC 07"),
    ],
    ids=["shorter", "another base rate", "another reference", "no precise BN", "norm", "splits", "data"],
)
def test_another_protocol_has_no_published_numbers(run: ResultRecord) -> None:
    assert comparable_numbers(run) == ()


def test_a_classification_batch_deviates_under_the_linear_rule() -> None:
    changed = ["mode.batch_size=1024", "mode.lrs=null"]
    run = run_of("linear_unigrad_800ep", *changed, metrics={"top1": 70.0})
    found = comparable_numbers(run)
    assert len(found) == 10
    assert deviations(found) == (
        "ours: 1024 images per step, rates scaled linearly (published recipe: 4096)",
    )
    scaled = run_of("linear_unigrad_800ep", *changed, "mode.base_lrs=[0.08]", metrics={"top1": 70.0})
    assert comparable_numbers(scaled) == ()


def test_fine_tuning_states_its_batch_and_its_arithmetic() -> None:
    changed = ["batch_size=512", "optimizer.lr_backbone=0.1", "optimizer.lr_head=null"]
    run = run_of("simclr_1percent", *changed, "precision=fp32", "channels_last=false", metrics={"top1": 50.0})
    assert set(deviations(comparable_numbers(run))) == {
        "ours: 512 images per step, rates scaled linearly (published recipe: 1024)",
        "ours: fp32 arithmetic (published recipe: bf16)",
        "ours: channels-first tensors (published recipe: channels-last)",
    }


def test_a_key_that_was_added_since_with_a_default_is_no_difference() -> None:
    run = voc_run()
    assert run.protocol is not None
    older = {k: v for k, v in run.protocol.items() if k != "precise_bn"}
    assert len(comparable_numbers(run.model_copy(update={"protocol": older}))) == 78
    # Without its schedule, which has no default, a record does not say that it followed the recipe.
    solver = {k: v for k, v in run.protocol["solver"].items() if k != "max_iter"}
    unsaid = run.protocol | {"solver": solver}
    assert comparable_numbers(run.model_copy(update={"protocol": unsaid})) == ()


def test_a_record_without_a_protocol_is_known_by_name_and_hash() -> None:
    shipped = recipe_hash(load("transfer", "voc0712_c4_24k"))
    found = comparable_numbers(voc_run(protocol=None))
    assert len(found) == 78 and deviations(found) == (LIBRARY,)
    assert len(comparable_numbers(voc_run(protocol=None, recipe="mine", recipe_hash=shipped))) == 0
    assert len(comparable_numbers(voc_run(protocol=None, recipe_hash="0" * 64))) == 0


@pytest.mark.parametrize(
    ("recipe", "count"),
    [
        ("linear_cifar10", 51),
        ("linear_cifar100", 42),
        ("linear_tiny_imagenet", 41),
        ("linear_moco", 50),
        ("linear_unigrad_100ep", 37),
        ("linear_unigrad_800ep", 10),
    ],
)
def test_a_linear_evaluation_has_the_numbers_of_its_tables(recipe: str, count: int) -> None:
    found = comparable_numbers(run_of(recipe, metrics={"top1": 50.0}))
    assert len(found) == count
    assert {c.number.metric for c in found} == {"top1"}
    assert deviations(found) == ()


def test_a_size_that_is_not_the_checkpoints_is_no_other_protocol() -> None:
    run = run_of("linear_tiny_imagenet", "image.input_size=any", metrics={"top1": 20.0})
    assert len(comparable_numbers(run)) == 41
