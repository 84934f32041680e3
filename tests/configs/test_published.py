"""The published numbers are those of the papers: row counts, spot values, and the papers' own arithmetic."""

import pytest
import timm

from carryover.core.formats.backbone import BACKBONES
from carryover.transfer.report.published import published_numbers
from tests.configs.published_values import numbers, value

COUNTS = {
    ("unigrad", 2): 10,
    ("unigrad", 3): 9,
    ("unigrad", 4): 8,
    ("unigrad", 5): 10,
    ("unigrad", 6): 4,
    ("unigrad", 8): 6 * 9,
    ("unigrad", 9): 5,
    ("unigrad", 10): 5,
    ("unigrad", 11): 7 * 4,
    ("eqco", 1): 3,
    ("eqco", 2): 14,
    ("eqco", 3): 5,
    ("eqco", 4): 5,
    ("eqco", 5): 5 * 2 * 4,
    ("eqco", 6): 2,
    ("eqco", 7): 2,
    ("eqco", 8): 4,
    ("eqco", 9): 4 * 6,
    ("sqrtkl", 1): 18 * 5,
    ("sqrtkl", 2): 18 * 5,
    ("sqrtkl", 3): 8 * 6,
    ("sqrtkl", 4): 8 * 12,
    ("sqrtkl", 5): 4 * 6,
    ("sqrtkl", 6): 5 * 2,
    ("sqrtkl", 7): 15,
    ("sqrtkl", 8): 4,
    ("sqrtkl", 9): 8 * 6,
    ("msbreg", 2): 8 * 2,
    ("msbreg", 3): 4 * 3,
    ("msbreg", 4): 8,
    ("msbreg", 5): 20 * 3,
    ("dino", 1): 5 * 2,
    ("dinov2", 1): 8 * 2,
    ("mae", 1): 3 * 2,
    ("mocov3", 1): 7,
    ("ibot", 1): 6 * 2 + 4,
    ("vitdet", 1): 3 * 2,
    ("convnextv2", 1): 8,
}


def test_every_table_is_there_with_every_number() -> None:
    counted: dict[tuple[str, int], int] = {}
    for number in published_numbers():
        counted[number.paper, number.table] = counted.get((number.paper, number.table), 0) + 1
    assert counted == COUNTS


SPOTS: list[tuple[float, str, int, dict[str, object]]] = [
    (69.7, "unigrad", 2, {"variant": "(g), without A"}),
    (67.9, "unigrad", 3, {"variant": "Table 2(e), stop-gradient"}),
    (114.6, "unigrad", 4, {"variant": "multi-crop", "metric": "time"}),
    (74.9, "unigrad", 5, {"variant": "CutMix"}),
    (67.6, "unigrad", 6, {"variant": "gradient of Eq. 21"}),
    (65.4, "unigrad", 8, {"method": "twist", "data": "VOC 07+12", "metric": "AP75"}),
    (40.7, "unigrad", 8, {"method": "unigrad", "metric": "mask AP75"}),
    (70.0, "unigrad", 9, {"variant": "projector depth 4"}),
    (70.9, "unigrad", 10, {"variant": "projector width 8192"}),
    (83.8, "unigrad", 11, {"method": "unigrad", "label_fraction": 0.01, "metric": "top5"}),
    (56.4, "unigrad", 11, {"method": "supervised", "label_fraction": 0.1, "metric": "top1"}),
    (67.4, "eqco", 1, {"variant": "K = 65536, N = 1024"}),
    (72.1, "eqco", 2, {"variant": "K = 256, alpha = 65536", "pretrain_epochs": 800}),
    (68.4, "eqco", 3, {"variant": "K = 256, alpha = 16384"}),
    (67.6, "eqco", 4, {"variant": "K = 4096"}),
    (
        4.6,
        "eqco",
        5,
        {"data": "correlated Gaussians, true value 8.0", "method": "infonce", "variant": "K = 128"},
    ),
    (62.1, "eqco", 6, {"variant": "momentum 0"}),
    (58.8, "eqco", 7, {"variant": "shuffling BN"}),
    (71.9, "eqco", 8, {"backbone": "resnet50 x4", "variant": "alpha = 256"}),
    (22.9, "eqco", 9, {"method": "simo", "metric": "APs"}),
    (67.9, "sqrtkl", 1, {"method": "sqrtkl", "backbone": "resnet18", "data": "CIFAR-100"}),
    (1879, "sqrtkl", 1, {"method": "npid", "metric": "memory"}),
    (37.5, "sqrtkl", 6, {"variant": "feature calibrate + grad update", "data": "Tiny-ImageNet"}),
    (
        50.1,
        "sqrtkl",
        3,
        {
            "method": "sqrtkl",
            "backbone": "mobilenet_v3_large",
            "pretrain_images": 1281167,
            "metric": "top1",
        },
    ),
    (51.4, "sqrtkl", 4, {"method": "sqrtkl", "data": "VOC 07", "metric": "AP75"}),
    (29.3, "sqrtkl", 4, {"method": "random", "metric": "mask AP"}),
    (31.4, "sqrtkl", 5, {"method": "sqrtkl", "metric": "mask AP"}),
    (66.4, "sqrtkl", 7, {"method": "jigclu"}),
    (90.7, "sqrtkl", 8, {"variant": "L1"}),
    (
        82.9,
        "sqrtkl",
        9,
        {"method": "sqrtkl", "backbone": "resnet18", "pretrain_images": 1281167, "metric": "top1"},
    ),
    (37.8, "msbreg", 2, {"method": "msbreg", "metric": "mask AP"}),
    (-3.8, "msbreg", 3, {"method": "msbreg", "metric": "uniformity"}),
    (75.3, "msbreg", 4, {"method": "byol", "variant": "LN, batch 256, lambda_b = 0.005"}),
    (81.6, "msbreg", 5, {"variant": "K = 8, lambda_s = 0.004, lambda_b = 0.5"}),
    (74.5, "dino", 1, {"backbone": "vit_small_patch16_224", "task": "knn"}),
    (87.1, "dinov2", 1, {"backbone": "vit_giant_patch14_reg4_dinov2", "task": "linear"}),
    (85.952, "mae", 1, {"backbone": "vit_large_patch16_224", "task": "finetune"}),
    (
        84.4,
        "ibot",
        1,
        {
            "pretrain_data": "imagenet22k",
            "metric": "top1",
            "task": "finetune",
            "backbone": "vit_base_patch16_224",
        },
    ),
    (45.9, "vitdet", 1, {"backbone": "vit_base_patch16_224", "metric": "mask AP"}),
    (83.0, "convnextv2", 1, {"backbone": "convnextv2_tiny"}),
]


def test_spot_values() -> None:
    for expected, paper, table, asked in SPOTS:
        assert value(paper, table, **asked) == expected, (paper, table, asked)


# Printed beside the numbers of Table 2: gains over MoCo v2 in AP50, AP, AP75 and on Tiny-ImageNet.
GAINS = {
    ("resnet18", 10_000, 200): (5.3, 4.2, 4.4, 9.7),
    ("resnet18", 10_000, 800): (3.5, 2.6, 2.8, 6.8),
    ("resnet18", 100_000, 200): (1.2, 1.5, 2.0, 5.9),
    ("resnet18", 100_000, 800): (0.7, 1.2, 1.7, 5.0),
    ("resnet50", 10_000, 800): (5.2, 5.4, 7.7, 2.7),
    ("resnet50", 100_000, 200): (2.0, 3.1, 4.1, 1.0),
    ("resnet50", 100_000, 800): (1.0, 1.8, 2.2, 0.6),
}


@pytest.mark.parametrize("setting", GAINS)
def test_the_gains_that_sqrtkl_table_2_prints_are_the_differences_of_its_numbers(
    setting: tuple[str, int, int],
) -> None:
    backbone, images, epochs = setting
    row = {"backbone": backbone, "pretrain_images": images, "pretrain_epochs": epochs}
    gains = [
        value("sqrtkl", 2, method="sqrtkl", metric=m, **row)
        - value("sqrtkl", 2, method="moco_v2", metric=m, **row)
        for m in ("AP50", "AP", "AP75", "top1")
    ]
    printed = list(GAINS[setting])
    if setting == ("resnet50", 100_000, 800):
        # 58.8 - 56.3 is 2.5; the paper prints +2.2. The numbers are kept as printed: see docs/published.md.
        assert gains.pop(2) == pytest.approx(2.5) and printed.pop(2) == 2.2
    assert gains == pytest.approx(printed, abs=1e-9)


@pytest.mark.parametrize(
    ("table", "printed"),
    [(3, {10_000: 12.2, 100_000: 6.9, 1_281_167: 3.9}), (9, {10_000: 13.3, 100_000: 2.4, 1_281_167: 0.7})],
)
def test_the_gains_that_sqrtkls_text_names_are_the_differences(table: int, printed: dict[int, float]) -> None:
    for images, gain in printed.items():
        row = {"backbone": "mobilenet_v3_small", "pretrain_images": images, "metric": "top1"}
        ours = value("sqrtkl", table, method="sqrtkl", **row)
        assert ours - value("sqrtkl", table, method="moco_v2", **row) == pytest.approx(gain)


def test_the_shares_that_sqrtkls_text_names_are_the_ratios_of_table_1() -> None:
    row = {"backbone": "resnet18", "task": "pretraining"}
    for metric, share in (("time", 0.469), ("memory", 0.686)):
        ratio = value("sqrtkl", 1, method="sqrtkl", metric=metric, **row)
        ratio /= value("sqrtkl", 1, method="simsiam", metric=metric, **row)
        assert ratio == pytest.approx(share, abs=5e-4)


def test_numbers_that_two_tables_print_agree() -> None:
    for variant in ("K = 256, alpha = 256", "K = 256, alpha = 65536"):
        assert value("eqco", 2, variant=variant, pretrain_epochs=200) == value("eqco", 3, variant=variant)
    for data in ("CIFAR-10", "Tiny-ImageNet"):
        whole = value("sqrtkl", 6, variant="feature calibrate + SqrtKL + grad update", data=data)
        assert whole == value("sqrtkl", 1, method="sqrtkl", backbone="resnet18", data=data)
    assert value("unigrad", 9, variant="projector depth 3") == value(
        "unigrad", 10, variant="projector width 2048"
    )


def test_every_row_says_where_it_is_from_and_is_unlike_every_other() -> None:
    every = published_numbers()
    assert {n.citation for n in every} == {
        "Tao et al. 2022",
        "Zhu et al. 2020",
        "Cao and Wu 2023",
        "Moon et al. 2022",
        "Caron et al. 2021 (DINO), README of the code",
        "Oquab et al. 2024 (DINOv2), README of the code",
        "He et al. 2022 (MAE), FINETUNE.md of the code",
        "Chen et al. 2021 (MoCo v3), README of the code",
        "Zhou et al. 2022 (iBOT), README of the code",
        "Li et al. 2022 (ViTDet), README of Detectron2's project",
        "Woo et al. 2023 (ConvNeXt V2), README of the code",
    }
    assert len({tuple(n.model_dump(exclude={"value"}).items()) for n in every}) == len(every)


def test_percentages_are_percentages() -> None:
    assert all(0 < n.value <= 100 for n in published_numbers() if n.unit == "%")


def test_backbones_are_called_what_records_call_them() -> None:
    known, widths = set(BACKBONES.names()), {"x2", "x4"}
    for number in published_numbers():
        if number.backbone is not None:
            name, *width = number.backbone.split()
            assert (name in known and set(width) <= widths) or (timm.is_model(name) and not width)


def test_recipes_named_beside_numbers_exist_and_have_their_data() -> None:
    from carryover.configs import load

    named: set[tuple[str, str | None]] = {(r, n.data) for n in published_numbers() for r in n.recipe}
    assert len(named) == 25
    for recipe, data in named:
        assert load("transfer", recipe).data.title == data


LINEAR = {
    "eqco": (35, 35, 7),
    "msbreg": (72, 0, 0),
    "sqrtkl": (149, 149, 21),
    "unigrad": (47, 47, 8),
    "dino": (5, 4, 4),
    "dinov2": (8, 8, 8),
    "mae": (3, 0, 0),
    "mocov3": (5, 0, 0),
    "ibot": (6, 0, 0),
}


def test_three_quarters_of_the_linear_rows_name_a_recipe() -> None:
    """By paper: rows, rows with a recipe, and of these the ones that have a protocol of their own."""
    linear = [n for n in published_numbers() if n.task == "linear"]
    assert len(linear) == 330 and sum(bool(n.recipe) for n in linear) == 243
    for paper, counts in LINEAR.items():
        rows = [n for n in linear if n.paper == paper]
        apart = sum(n.own_protocol is not None for n in rows)
        assert (len(rows), sum(bool(n.recipe) for n in rows), apart) == counts
    # MSBReg's are on ImageNet-100 and STL-10, for which nothing is shipped.
    assert {n.data for n in linear if not n.recipe and n.paper == "msbreg"} == {"imagenet100", "stl10"}


def test_a_row_with_a_protocol_of_its_own_names_the_recipe_that_it_stands_beside() -> None:
    assert all(n.recipe for n in published_numbers() if n.own_protocol)


def test_rows_of_other_protocols_are_marked() -> None:
    apart: dict[tuple[str, int], int] = {}
    for n in published_numbers():
        if n.own_protocol:
            apart[n.paper, n.table] = apart.get((n.paper, n.table), 0) + 1
    assert apart == {
        ("dino", 1): 4,
        ("dinov2", 1): 8,
        ("eqco", 2): 7,
        ("sqrtkl", 3): 4,
        ("sqrtkl", 4): 21,
        ("sqrtkl", 7): 13,
        ("sqrtkl", 9): 4,
        ("unigrad", 5): 8,
        ("unigrad", 8): 3,
        ("unigrad", 11): 24,
    }


def test_simsiams_rows_of_voc_07_12_all_stand_apart() -> None:
    rows = [n for n in numbers("sqrtkl", 4, data="VOC 07+12") if n.taken_from]
    assert len(rows) == 21 and all("12 train" in (n.own_protocol or "") for n in rows)
    assert all(n.own_protocol is None for n in numbers("sqrtkl", 4, method="sqrtkl"))


def test_detection_was_published_with_detectron2() -> None:
    assert {n.backend for n in published_numbers() if n.task == "detection"} == {"detectron2"}
    assert {n.backend for n in published_numbers() if n.task != "detection"} == {None}
