"""Values of every published table, picked and read out of the papers' text by hand for the second check."""

from collections.abc import Mapping

from carryover.transfer.report.published import published_numbers
from tests.configs.published_values import numbers, value

VOC, VOC12, COCO = {"data": "VOC 07"}, {"data": "VOC 07+12"}, {"data": "COCO 2017"}
R18, R50, MOBV2 = {"backbone": "resnet18"}, {"backbone": "resnet50"}, {"backbone": "mobilenet_v2"}
SMALL, LARGE = {"backbone": "mobilenet_v3_small"}, {"backbone": "mobilenet_v3_large"}
B0 = {"backbone": "efficientnet_b0"}
IN10K, IN100K, IN1K = ({"pretrain_images": n} for n in (10_000, 100_000, 1_281_167))
TOP1, TIME = {"metric": "top1"}, {"metric": "time"}
ONE, TEN = {"label_fraction": 0.01}, {"label_fraction": 0.1}
POSITIVE = "momentum encoder for positives, stop-gradient for negatives"


def of(method: str, metric: str = "", *rest: Mapping[str, object]) -> dict[str, object]:
    """Return what to ask for: a method, perhaps a metric, and more."""
    asked: dict[str, object] = {"method": method}
    if metric:
        asked["metric"] = metric
    for more in rest:
        asked |= more
    return asked


def mi(method: str, true: int, pairs: int) -> dict[str, object]:
    """Return what to ask EqCo's Table 5 for."""
    return {
        "method": method,
        "variant": f"K = {pairs}",
        "data": f"correlated Gaussians, true value {true}.0",
    }


def settings(K: int, lam_s: str, lam_b: str) -> dict[str, object]:
    """Return what to ask MSBReg's Table 5 for."""
    return {"variant": f"K = {K}, lambda_s = {lam_s}, lambda_b = {lam_b}", "pretrain_epochs": 300}


VALUES: dict[tuple[str, int], list[tuple[float, dict[str, object]]]] = {
    ("unigrad", 2): [
        (70.2, of("directpred")),
        (69.0, {"variant": "(f)"}),
        (69.8, {"variant": "(j), simplified"}),
    ],
    ("unigrad", 3): [
        (67.6, {"variant": "Table 2(b), stop-gradient"}),
        (70.2, {"variant": "Table 2(e), momentum encoder"}),
        (70.1, {"variant": f"Table 2(b), {POSITIVE}"}),
    ],
    ("unigrad", 4): [
        (71.2, {"variant": "CutMix", **TOP1}),
        (72.3, {"variant": "CutMix + multi-crop", **TOP1}),
        (38.2, {"variant": None, **TIME}),
    ],
    ("unigrad", 5): [
        (69.3, of("simclr", "", {"pretrain_epochs": 1000})),
        (71.3, of("simsiam", "", {"pretrain_epochs": 800})),
        (75.3, of("dino", "", {"variant": "multi-crop"})),
    ],
    ("unigrad", 6): [
        (67.5, {"variant": "gradient of Eq. 20"}),
        (70.2, {"variant": "gradient of Eq. 26"}),
        (70.2, {"variant": "gradient of Eq. 27"}),
    ],
    ("unigrad", 8): [
        (81.6, of("moco_v2", "AP50", VOC12)),
        (62.2, of("dino", "AP50", COCO)),
        (59.0, of("simclr", "mask AP50")),
        (38.1, of("supervised", "mask AP75")),
        (57.8, of("unigrad", "AP", VOC12, {"pretrain_epochs": 800})),
    ],
    ("unigrad", 9): [
        (60.7, {"variant": "projector depth 1"}),
        (65.2, {"variant": "projector depth 2"}),
        (69.8, {"variant": "projector depth 5"}),
    ],
    ("unigrad", 10): [
        (68.3, {"variant": "projector width 1024"}),
        (70.5, {"variant": "projector width 4096"}),
        (71.2, {"variant": "projector width 16384"}),
    ],
    ("unigrad", 11): [
        (75.5, of("simclr", "top5", ONE)),
        (68.8, of("byol", "top1", TEN)),
        (89.3, of("barlow_twins", "top5", TEN)),
        (61.2, of("twist", "top1", ONE)),
        (25.4, of("supervised", "top1", ONE, {"pretrain_data": None, "pretrain_epochs": 0})),
    ],
    ("eqco", 1): [
        (67.5, {"variant": "K = 65536, N = 256"}),
        (67.5, {"variant": "K = 65536, N = 512"}),
        (67.4, {"variant": "K = 65536, N = 1024"}),
    ],
    ("eqco", 2): [
        (66.2, of("cmc", "", {"pretrain_epochs": 240})),
        (68.1, {"variant": "K = 16, alpha = 256"}),
        (73.0, of("infomin", "", {"pretrain_epochs": 800})),
        (63.6, of("pirl")),
    ],
    ("eqco", 3): [
        (68.0, {"variant": "K = 256, alpha = 256"}),
        (68.1, {"variant": "K = 256, alpha = 4096"}),
        (68.5, {"variant": "K = 256, alpha = 65536"}),
    ],
    ("eqco", 4): [
        (67.0, {"variant": "K = 256"}),
        (67.1, {"variant": "K = 1024"}),
        (67.3, {"variant": "K = 16384"}),
    ],
    ("eqco", 5): [
        (1.7, mi("infonce", 2, 64)),
        (3.8, mi("eqco", 4, 64)),
        (4.5, mi("infonce", 6, 256)),
        (5.7, mi("eqco", 8, 128)),
        (6.1, mi("eqco", 10, 64)),
    ],
    ("eqco", 6): [(62.1, {"variant": "momentum 0"}), (64.4, {"variant": "momentum 0.999"})],
    ("eqco", 7): [(58.8, {"variant": "shuffling BN"}), (64.4, {"variant": "SyncBN"})],
    ("eqco", 8): [
        (70.2, {"backbone": "resnet50 x2", "variant": "alpha = 256"}),
        (70.5, {"backbone": "resnet50 x2", "variant": "alpha = 65536"}),
        (72.3, {"backbone": "resnet50 x4", "variant": "alpha = 65536"}),
    ],
    ("eqco", 9): [
        (34.0, of("random", "AP75", {"pretrain_epochs": 0})),
        (42.2, of("supervised", "APm")),
        (50.8, of("moco_v2", "APl")),
        (39.0, of("simo", "AP", {"pretrain_epochs": 200})),
    ],
    ("sqrtkl", 1): [
        (11.59, of("jigclu", "time", R18)),
        (3639, of("pid", "memory")),
        (62.4, of("simclr", "top1", MOBV2, {"data": "CIFAR-100"})),
        (28.7, of("byol", "top1", MOBV2, {"data": "Tiny-ImageNet"})),
        (91.5, of("simclr", "top1", R50, {"data": "CIFAR-10"})),
        (5095, of("sqrtkl", "memory", R50)),
    ],
    ("sqrtkl", 2): [
        (31.5, of("random", "AP75", R18)),
        (61.8, of("moco_v2", "AP50", R18, IN10K, {"pretrain_epochs": 200})),
        (42.5, of("simsiam", "AP", R18)),
        (24.3, of("simsiam", "top1", R18)),
        (26.3, of("sqrtkl", "top1", R50, IN10K)),
        (18.62, of("moco_v2", "time", R50, IN100K, {"pretrain_epochs": 800})),
        (53.3, of("sqrtkl", "AP", R50, IN100K, {"pretrain_epochs": 800})),
    ],
    ("sqrtkl", 3): [
        (21.8, of("moco_v2", "top1", SMALL, IN10K)),
        (36.1, of("sqrtkl", "top1", LARGE, IN100K)),
        (34.8, of("moco_v2", "top1", B0, IN100K)),
        (60.4, of("sqrtkl", "top1", R18, IN1K)),
        (53.55, of("moco_v2", "time", SMALL, IN1K)),
    ],
    ("sqrtkl", 4): [
        (35.9, of("random", "AP50", VOC)),
        (53.5, of("supervised", "AP", VOC12)),
        (49.9, of("byol", "AP75", VOC)),
        (40.3, of("swav", "AP75", COCO)),
        (36.6, of("moco_v2", "mask AP75")),
        (58.1, of("sqrtkl", "AP50", COCO)),
    ],
    ("sqrtkl", 5): [
        (53.9, of("moco_v2", "AP50")),
        (35.3, of("seed", "AP", {"variant": "teacher ResNet-50"})),
        (51.3, of("seed", "mask AP50", {"variant": "teacher ResNet-101"})),
        (33.5, of("sqrtkl", "mask AP75")),
    ],
    ("sqrtkl", 6): [
        (35.8, {"variant": "none of the three", "data": "Tiny-ImageNet"}),
        (89.4, {"variant": "feature calibrate", "data": "CIFAR-10"}),
        (38.9, {"variant": "feature calibrate + SqrtKL", "data": "Tiny-ImageNet"}),
    ],
    ("sqrtkl", 7): [
        (54.0, of("npid", "", {"variant": "single branch"})),
        (64.5, of("sqrtkl", "", {"variant": "single branch"})),
        (60.6, of("moco", "", {"variant": "dual branch"})),
        (67.7, of("moco_v2")),
    ],
    ("sqrtkl", 8): [
        (88.8, {"variant": "cross-entropy only"}),
        (89.8, {"variant": "L2"}),
        (91.1, {"variant": "L1 + L2 (SqrtKL)"}),
    ],
    ("sqrtkl", 9): [
        (63.5, of("sqrtkl", "top1", SMALL, IN10K)),
        (72.9, of("moco_v2", "top1", LARGE, IN1K)),
        (69.1, of("sqrtkl", "top1", B0, IN100K)),
        (73.7, of("moco_v2", "top1", R18, IN100K)),
        (36.05, of("sqrtkl", "time", R18, IN1K)),
    ],
    ("msbreg", 2): [
        (35.8, of("simclr", "mask AP")),
        (41.6, of("byol", "AP")),
        (36.4, of("obow", "mask AP")),
        (41.8, of("msbreg", "AP", {"pretrain_epochs": 300})),
    ],
    ("msbreg", 3): [
        (0.27, {"variant": "with uniformity loss", "metric": "alignment"}),
        (-2.92, {"variant": "with L_b + L_s", "metric": "uniformity"}),
        (-1.52, {"variant": None, "metric": "uniformity"}),
        (80.4, of("msbreg", "top1")),
    ],
    ("msbreg", 4): [
        (91.4, of("msbreg", "", R18, {"variant": "BN, batch 256, lambda_b = 0.05", "pretrain_epochs": 320})),
        (10.6, of("byol", "", R18, {"variant": "LN, batch 1024, lambda_b = 0"})),
        (82.3, of("msbreg", "", R18, {"variant": "LN, batch 256, lambda_b = 0.005"})),
    ],
    ("msbreg", 5): [
        (71.2, settings(2, "0.004", "2.0")),
        (78.8, settings(4, "0.002", "0.25")),
        (79.0, settings(4, "0.01", "2.0")),
        (80.9, settings(8, "0.004", "0.25")),
        (79.8, settings(8, "0.002", "0")),
    ],
    ("dino", 1): [
        (79.7, {"backbone": "vit_small_patch8_224", "task": "linear"}),
        (76.1, {"backbone": "vit_base_patch16_224", "task": "knn"}),
        (75.3, R50 | {"task": "linear"}),
    ],
    ("dinov2", 1): [
        (81.1, {"backbone": "vit_small_patch14_dinov2", "task": "linear"}),
        (82.0, {"backbone": "vit_base_patch14_reg4_dinov2", "task": "knn"}),
        (83.8, {"backbone": "vit_large_patch14_reg4_dinov2", "task": "knn"}),
    ],
    ("mae", 1): [
        (83.664, {"backbone": "vit_base_patch16_224", "task": "finetune"}),
        (86.928, {"backbone": "vit_huge_patch14_224", "task": "finetune"}),
        (76.0, {"backbone": "vit_large_patch16_224", "task": "linear"}),
    ],
    ("mocov3", 1): [
        (73.2, {"backbone": "vit_small_patch16_224", "task": "linear"}),
        (83.2, {"backbone": "vit_base_patch16_224", "task": "finetune"}),
        (74.6, R50 | {"pretrain_epochs": 1000}),
    ],
    ("ibot", 1): [
        (77.0, {"backbone": "vit_small_patch16_224", "task": "linear"}),
        (76.2, {"variant": "windows of 14", "task": "knn"}),
        (86.3, {"backbone": "vit_large_patch16_224", "task": "finetune"}),
    ],
    ("vitdet", 1): [
        (51.6, {"backbone": "vit_base_patch16_224", "metric": "AP"}),
        (49.2, {"backbone": "vit_large_patch16_224", "metric": "mask AP"}),
        (56.7, {"backbone": "vit_huge_patch14_224", "metric": "AP"}),
    ],
    ("convnextv2", 1): [
        (76.7, {"backbone": "convnextv2_atto"}),
        (84.9, {"backbone": "convnextv2_base"}),
        (86.3, {"backbone": "convnextv2_huge"}),
    ],
}


def test_values_read_in_the_text_are_in_the_file() -> None:
    for (paper, table), values in VALUES.items():
        for expected, asked in values:
            assert value(paper, table, **asked) == expected, (paper, table, asked)


def test_every_table_has_three_values_or_all_that_it_has() -> None:
    for paper, table in {(n.paper, n.table) for n in published_numbers()}:
        assert len(VALUES[paper, table]) >= min(3, len(numbers(paper, table)))
