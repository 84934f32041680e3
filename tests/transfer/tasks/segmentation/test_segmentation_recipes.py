"""Every shipped segmentation recipe, shrunk, on a data set of its layout: built, one step, tested."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carryover.configs import load
from carryover.transfer.tasks.evaluate import evaluate
from tests.transfer.convert.backbones import write_backbone
from tests.transfer.convert.timm_backbones import write_timm

SHRUNK = [
    "data.defects.absent_class=keep",
    *("model.channels=8", "model.auxiliary.channels=8", "input.scale=[96, 64]", "input.crop_size=[33, 33]"),
    *("input.test_scale=[96, 64]", "solver.ims_per_batch=2", "solver.reference_ims_per_batch=2"),
    *("solver.max_iter=1", "workers=0", "samples=1"),
]


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("fcn_r50_voc2012aug", "torchvision"),
        ("fcn_r50_cityscapes", "torchvision"),
        ("fcn_r50_ade20k", "torchvision"),
        pytest.param("fcn_r50_voc2012aug", "mmseg", marks=pytest.mark.mmseg),
        pytest.param("fcn_r50_cityscapes", "mmseg", marks=pytest.mark.mmseg),
        pytest.param("upernet_r50_ade20k", "mmseg", marks=pytest.mark.mmseg),
    ],
)
def test_recipe_takes_a_step(name, backend, tmp_path):
    layout = name.rpartition("_")[2]
    write = {"voc2012aug": _write_voc, "cityscapes": _write_cityscapes, "ade20k": _write_ade20k}[layout]
    write(tmp_path / "data")
    keys = [f"data.root={tmp_path / 'data'}", f"backend={backend}", *SHRUNK]
    if layout == "cityscapes":
        keys.append("input.test_stride=[20, 30]")
    record = evaluate(
        load("transfer", name, keys), write_backbone(tmp_path / "b.safetensors"), tmp_path / "out"
    )
    assert record.backend == {"torchvision": "torchvision", "mmseg": "mmsegmentation"}[backend]
    assert (record.train_images, record.metrics[0].name, record.metrics[0].n) == (3, "mIoU", 1)
    assert record.facts["carried_tensors"] == 120
    assert (tmp_path / "out" / "result.json").is_file()


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("dinov2_linear_ade20k", "vit_small_patch14_dinov2"),
        ("dinov2_linear_voc2012aug", "vit_small_patch14_dinov2"),
        pytest.param("upernet_mae_vitb_ade20k", "vit_tiny_patch16_224", marks=pytest.mark.mmseg),
        pytest.param("upernet_convnext_t_ade20k", "convnext_atto", marks=pytest.mark.mmseg),
    ],
)
def test_a_recipe_of_timms_networks_takes_a_step(name, network, tmp_path):
    layout = name.rpartition("_")[2]
    {"voc2012aug": _write_voc, "ade20k": _write_ade20k}[layout](tmp_path / "data")
    side = 28 if "dinov2" in name else 64
    keys = [key for key in SHRUNK if not key.startswith(("model", "input.crop"))]
    keys += [f"input.crop_size=[{side}, {side}]", f"input.test_stride=[{side - 8}, {side - 8}]"]
    keys += ["solver.rise_iters=0", "solver.precision=fp32", f"data.root={tmp_path / 'data'}"]
    keys += ["model.channels=8", "model.auxiliary.channels=8"] if "upernet" in name else []
    source = write_timm(tmp_path / "b.safetensors", network, **({"input_size": 28} if side == 28 else {}))
    record = evaluate(load("transfer", name, keys), source, tmp_path / "out")
    assert record.metrics[0].name == "mIoU" and record.facts["iterations"] == 1


def _write(image: Path, mask: Path, values) -> None:
    """An image of noise and a mask of blocks of some of the values."""
    rng = np.random.default_rng(zlib.crc32(image.name.encode()))
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(image)
    blocks = rng.choice(np.array(values, dtype=np.uint8), (4, 6))
    Image.fromarray(blocks.repeat(10, 0).repeat(10, 1)).save(mask)


def _write_voc(root: Path) -> None:
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, ids in (("train", "a"), ("aug", "bc"), ("val", "d")):
        (lists / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))
        folder = "SegmentationClassAug" if name == "aug" else "SegmentationClass"
        for i in ids:
            _write(root / "JPEGImages" / f"{i}.jpg", root / folder / f"{i}.png", [0, 1, 15, 20, 255])


def _write_cityscapes(root: Path) -> None:
    for split, names in (("train", "abc"), ("val", "d")):
        for name in names:
            image = root / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png"
            mask = root / "gtFine" / split / "ulm" / f"{name}_gtFine_labelIds.png"
            _write(image, mask, [0, 3, 7, 11, 26, 33])


def _write_ade20k(root: Path) -> None:
    for split, names in (("training", "abc"), ("validation", "d")):
        for name in names:
            image = root / "images" / split / f"{name}.jpg"
            _write(image, root / "annotations" / split / f"{name}.png", [0, 1, 13, 150])
