"""What must hold between published numbers: columns in order, numbers printed twice, gains the texts name."""

import pytest

from carryover.transfer.report.published import PublishedNumber, published_numbers
from tests.configs.published_values import numbers, value


def alike(number: PublishedNumber, metric: str) -> tuple[object, ...]:
    """Return what two columns of one printed row have in common, under the name of one of them."""
    fields = number.model_dump(exclude={"metric", "value", "note"}) | {"metric": metric}
    return tuple(sorted((k, str(v)) for k, v in fields.items()))


@pytest.mark.parametrize(
    ("less", "more", "pairs"),
    [
        ("AP", "AP50", 62),
        ("AP75", "AP50", 62),
        ("mask AP", "mask AP50", 18),
        ("mask AP", "mask AP75", 18),
        ("mask AP75", "mask AP50", 18),
        ("APs", "APm", 4),
        ("APm", "APl", 4),
        ("top1", "top5", 14),
    ],
)
def test_no_two_columns_are_exchanged(less: str, more: str, pairs: int) -> None:
    found = {alike(n, n.metric): n.value for n in published_numbers()}
    both = [
        (n.value, found[alike(n, more)])
        for n in published_numbers()
        if n.metric == less and alike(n, more) in found
    ]
    assert len(both) == pairs
    assert all(low < high for low, high in both)


def test_on_coco_ap75_is_above_ap() -> None:
    found = {alike(n, n.metric): n.value for n in published_numbers()}
    # MSBReg and the README of ViTDet print no AP75.
    without = ("msbreg", "vitdet")
    boxes = [n for n in published_numbers() if n.metric == "AP" and n.data == "COCO 2017"]
    boxes = [n for n in boxes if n.paper not in without]
    assert len(boxes) == 22
    assert all(n.value < found[alike(n, "AP75")] for n in boxes)


def test_more_labels_are_more_accurate() -> None:
    for n in numbers("unigrad", 11, label_fraction=0.01):
        assert n.value < value("unigrad", 11, label_fraction=0.1, method=n.method, metric=n.metric)


def same_pretraining(number: PublishedNumber) -> dict[str, object]:
    """Return what to ask for to find the same pretraining's number in another row or table."""
    return {k: getattr(number, k) for k in ("method", "metric", "backbone", "pretrain_images")}


def test_pretraining_costs_the_same_hours_in_every_table_of_sqrtkl_that_prints_them() -> None:
    hours = numbers("sqrtkl", 3, metric="time")
    assert len(hours) == 24
    for n in hours:
        row = same_pretraining(n)
        assert value("sqrtkl", 9, **row) == n.value
        if n.backbone == "resnet18" and n.pretrain_images != 1_281_167:
            assert value("sqrtkl", 2, pretrain_epochs=200, **row) == n.value


def test_four_times_the_epochs_cost_four_times_the_hours() -> None:
    long = [n for n in numbers("sqrtkl", 2, metric="time") if n.pretrain_epochs == 800]
    compared = 0
    for n in long:
        row = same_pretraining(n)
        for short in numbers("sqrtkl", 2, pretrain_epochs=200, **row):
            compared += 1
            # Printed to 0.01 h: rounding moves four times the short one by at most 0.02.
            assert n.value == pytest.approx(4 * short.value, abs=0.025)
    assert compared == 6


def test_numbers_that_the_papers_print_twice_agree() -> None:
    for variant, twin in (
        ("cross-entropy only", "none of the three"),
        ("L1 + L2 (SqrtKL)", "feature calibrate + SqrtKL + grad update"),
    ):
        assert value("sqrtkl", 8, variant=variant) == value("sqrtkl", 6, variant=twin, data="CIFAR-10")
    assert value("eqco", 4, variant="K = 65536") == value("eqco", 1, variant="K = 65536, N = 256")
    assert value("eqco", 4, variant="K = 65536") == value("eqco", 2, method="moco_v2", pretrain_epochs=200)
    assert value("eqco", 6, variant="momentum 0.999") == value("eqco", 7, variant="SyncBN")
    for method, alone, twin in (
        ("byol", None, "K = 2, lambda_s = 0, lambda_b = 0"),
        ("msbreg", "K = 4", "K = 4, lambda_s = 0.004, lambda_b = 0.5"),
    ):
        printed = value("msbreg", 3, method=method, variant=alone, metric="top1")
        assert printed == value("msbreg", 5, variant=twin)
    for variant, letter in (("Table 2(b)", "(b)"), ("Table 2(j)", "(j), simplified")):
        assert value("unigrad", 3, variant=f"{variant}, momentum encoder") == value(
            "unigrad", 2, variant=letter
        )
    assert value("unigrad", 2, variant="(e)") == value("unigrad", 4, variant=None, metric="top1")
    assert value("unigrad", 2, variant="(e)") == value("unigrad", 9, variant="projector depth 3")


def test_differences_that_the_texts_name_are_those_of_the_tables() -> None:
    base = value("eqco", 2, variant="K = 256, alpha = 65536", pretrain_epochs=200)
    for backbone, gain in (("resnet50 x2", 2.0), ("resnet50 x4", 3.8)):
        wide = value("eqco", 8, backbone=backbone, variant="alpha = 65536")
        assert wide - base == pytest.approx(gain)
    plain = value("unigrad", 4, variant=None, metric="top1")
    for variant, gain in (("CutMix", 0.9), ("multi-crop", 1.4), ("CutMix + multi-crop", 2.0)):
        assert value("unigrad", 4, variant=variant, metric="top1") - plain == pytest.approx(gain)
    for data, gain in (("CIFAR-10", 0.4), ("CIFAR-100", 2.4), ("Tiny-ImageNet", 2.6)):
        ours, simsiam = (
            value("sqrtkl", 1, method=m, backbone="resnet18", data=data) for m in ("sqrtkl", "simsiam")
        )
        assert ours - simsiam == pytest.approx(gain)
    tiny = {
        v: value("sqrtkl", 6, variant=v, data="Tiny-ImageNet")
        for v in {n.variant for n in numbers("sqrtkl", 6)}
    }
    start, bare = tiny["feature calibrate"], tiny["none of the three"]
    assert start - bare == pytest.approx(1.1)
    assert tiny["feature calibrate + grad update"] - start == pytest.approx(0.6)
    assert tiny["feature calibrate + SqrtKL + grad update"] - tiny[
        "feature calibrate + SqrtKL"
    ] == pytest.approx(0.8)


def test_msbregs_best_setting_is_the_one_its_text_names() -> None:
    for K in (4, 8):
        column = [n for n in numbers("msbreg", 5) if (n.variant or "").startswith(f"K = {K},")]
        best = max(column, key=lambda n: n.value)
        assert best.variant == f"K = {K}, lambda_s = 0.004, lambda_b = 0.5"
