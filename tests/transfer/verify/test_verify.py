"""`carryover verify` on a network trained here in seconds: seeded faults are named, none in a sound file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from benchmarks.seeded_faults import Fault, seeded
from carryover.configs import UserError, load
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import load_canonical, read_metadata
from carryover.pretrain.trainer import train
from carryover.transfer.cli.main import app
from carryover.transfer.cli.verify_command import settings
from carryover.transfer.verify.evidence import Evidence
from carryover.transfer.verify.published import claims_of
from carryover.transfer.verify.verify import verify

SIDE = 32
FEW = ("train_images=96", "test_images=96", "statistics_images=64", "random_controls=1", "device=cpu")


def _image(label: int, rng: np.random.Generator) -> Image.Image:
    """Draw stripes with much or little red (1) that lie or stand (2); blue and brightness say nothing."""
    stripes = np.sin(np.arange(SIDE) * rng.uniform(0.7, 1.1) + rng.uniform(0, 6))
    field = np.broadcast_to(stripes if label & 2 else stripes[:, None], (SIDE, SIDE))
    tint = np.array([1.0 if label & 1 else -1.0, 0.0, rng.choice([-1.0, 1.0])])
    base = rng.uniform(90, 160) + 60 * rng.standard_normal((SIDE, SIDE, 1))
    pixels = base + 45 * field[..., None] * rng.uniform(0.6, 1) + rng.uniform(15, 45) * tint
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stripes")
    rng = np.random.default_rng(0)
    for split, count in (("train", 320), ("val", 160)):
        for number in range(count):
            folder = root / split / f"class{number % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            _image(number % 4, rng).save(folder / f"{number:03}.png")
    return root


@pytest.fixture(scope="module")
def sound(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = [
        f"data.root={images}",
        "data.name=stripes",
        f"augment.view.size={SIDE}",
        "augment.view.grayscale=0",
    ]
    keys += ["augment.view.jitter=null", "precision=fp32", "batch_size=32", "schedule.epochs=6", "device=cpu"]
    return train(load("pretrain", "supervised_demo", keys), tmp_path_factory.mktemp("runs") / "sound")


@pytest.fixture(scope="module")
def faults(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fault]:
    return {fault.name: fault for fault in seeded(sound, tmp_path_factory.mktemp("faults"))}


def _config(images: Path, *more: str) -> Any:
    return settings([f"data.root={images}", *FEW, *more])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "sound",
        "BGR weights",
        "claims 0 to 255",
    ],
)
def test_a_seeded_fault_is_named_and_a_sound_file_is_not(
    images: Path, faults: dict[str, Fault], name: str
) -> None:
    fault = faults[name]
    found = verify(fault.path, _config(images))
    assert (None if found.named is None else found.named.cause) == fault.cause, found
    assert found.readings[0].cause == "as it is" and len(found.controls) == 1
    if fault.cause is None:
        assert found.readings[0].knn is not None and found.readings[0].knn > 60
        assert found.readings[0].mismatch is not None and found.readings[0].mismatch < 0.1
        assert verify(fault.path, _config(images)) == found, "the same every time"


def test_without_images_the_tensors_are_looked_at(faults: dict[str, Fault]) -> None:
    nothing = settings([])
    assert verify(faults["sound"].path, nothing).named is None
    assert verify(faults["two encoders"].path, nothing).named is None
    named_by_tensors = ("reset statistics", "reset in the last half", "new weights beside it")
    for name in (*named_by_tensors, "new weights", "new weights, statistics carried"):
        named = verify(faults[name].path, nothing).named
        assert named is not None and named.cause == faults[name].cause
    assert "give images" in verify(faults["sound"].path, nothing).open_questions[0]


@pytest.mark.slow
def test_images_without_labels_tell_what_batch_statistics_tell(
    images: Path, faults: dict[str, Fault]
) -> None:
    config = settings([f"images={images / 'val'}", *FEW])
    found = verify(faults["sound"].path, config)
    assert found.named is None and found.readings[0].knn is None
    assert any("labels only" in question for question in found.open_questions)
    named = verify(faults["claims 0 to 255"].path, config).named
    assert named is not None and named.cause == "mean/std"


@pytest.mark.slow
def test_the_command_prints_the_verdict_writes_it_and_says_it_in_its_status(
    images: Path, faults: dict[str, Fault], tmp_path: Path
) -> None:
    out = tmp_path / "verified.json"
    words = ["verify", str(faults["claims 0 to 255"].path), f"data.root={images}", *FEW, "--out", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1, result.output
    assert "likely cause: mean/std" in result.output
    assert "--pixels" in result.output
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["named"]["cause"] == "mean/std" and written["schema_version"] == 1
    fine = CliRunner().invoke(app, ["verify", str(faults["sound"].path)])
    assert fine.exit_code == 0 and "nothing found against what it claims" in fine.output


def test_of_folders_of_classes_a_fifth_is_held_out_unless_splits_are_there_or_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "plain" / name).mkdir(parents=True)
        (tmp_path / "split" / "val" / name).mkdir(parents=True)
    plain = settings([f"data.root={tmp_path / 'plain'}"]).data
    assert (plain.test_split, plain.splits) == ("test", {"test": 0.2})
    split = settings([f"data.root={tmp_path / 'split'}"]).data
    named = settings([f"data.root={tmp_path / 'plain'}", "data.test_split=dog"]).data
    assert (split.test_split, split.splits) == ("val", {})
    assert (named.test_split, named.splits) == ("dog", {})


def test_what_is_asked_is_checked(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'test_images'"):
        settings(["test_image=5"])
    with pytest.raises(UserError, match="no such folder"):
        verify(sound, settings([f"images={tmp_path / 'nowhere'}"]))


def test_published_rows_of_the_claimed_method_on_these_data_stand_beside_it(sound: Path) -> None:
    about = read_metadata(sound).model_copy(update={"method": "byol", "epochs": 400.0})
    found = Evidence(np.arange(100) < 75, np.arange(100) < 80, None)
    claims = list(claims_of(about, "CIFAR-10", 500, found))
    assert [(c.published, c.measured, round(c.difference, 1)) for c in claims] == [(89.3, 80.0, -9.3)]
    assert "Cao and Wu 2023, Table 1" in claims[0].number
    assert not list(claims_of(about, "my data", 500, found))
    assert not list(claims_of(about.model_copy(update={"epochs": 100.0}), "CIFAR-10", 500, found))
    assert not list(claims_of(about, "CIFAR-10", 500, Evidence(None, None, None)))
    vit = BackboneConfig(arch="timm/vit_small_patch16_224")
    dino = about.model_copy(update={"method": "DINO", "epochs": None, "backbone": vit})
    claims = list(claims_of(dino, "ImageNet", 500, found))
    assert [(c.published, c.measured) for c in claims] == [(74.5, 75.0), (77.0, 80.0)]
    assert ", k-NN: " in claims[0].number and ", linear: " in claims[1].number


@pytest.mark.slow
def test_a_file_that_names_no_size_is_not_accused_of_one(images: Path, sound: Path, tmp_path: Path) -> None:
    """A plain state dict: the size that is assumed is nobody's claim."""
    state, _ = load_canonical(sound)
    torch.save({"state_dict": state, "arch": "resnet18"}, tmp_path / "plain.pth")
    found = verify(tmp_path / "plain.pth", _config(images))
    assert found.named is None
    assert any("does not say on what crops" in remark for remark in found.remarks)
    # Said by the user it is a claim, the only one that can be blamed. Whether it is depends on how well a
    # reading fits, and that on the processor that trained the network; test_diagnose.py has both outcomes.
    said = verify(tmp_path / "plain.pth", _config(images, "size=128"))
    assert not any("does not say on what crops" in remark for remark in said.remarks)
    assert said.named is None or said.named.cause == "size"
