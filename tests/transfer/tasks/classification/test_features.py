"""The feature store: right, reused, keyed by everything that matters, rebuilt when damaged."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from carryover.configs import UserError, WorkError
from carryover.core.backbones.build import build_backbone, feature_maps
from carryover.core.data.config import DataConfig
from carryover.core.data.labelled.config import ImageConfig
from carryover.core.data.prepared import Dataset, EvaluationLoader, build_dataset
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.training.distributed import Ranks
from carryover.transfer.tasks.frozen.depths import pooled
from carryover.transfer.tasks.frozen.features import FeatureSet, Request, digest, stored_features

AUGMENT = ImageConfig(size=32, resize=32).augment((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
ALONE = Ranks(0, 1, torch.device("cpu"))


class Counting(nn.Module):
    """Color means as features; counts how often it is looked through."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x.mean(dim=(2, 3))


@pytest.fixture
def dataset(images: Path) -> Dataset:
    """The test split as a data set."""
    return build_dataset(DataConfig(root=images, split="val"))


@pytest.fixture
def request_(dataset: Dataset) -> Request:
    """The pooled features of that split."""
    return Request("0" * 64, dataset, AUGMENT, ("pooled",), "fp32")


def stored(request: Request, network: nn.Module, store: Path) -> FeatureSet:
    return stored_features(request, network, store, ALONE, batch_size=7, workers=0)


def test_features_are_the_networks_outputs_in_the_data_sets_order(request_: Request, tmp_path: Path) -> None:
    found = stored(request_, Counting(), tmp_path)
    loader = EvaluationLoader(request_.images, AUGMENT, 24)
    expected = torch.cat([b.views[0].mean(dim=(2, 3)) for b in loader])
    torch.testing.assert_close(found.pooled, expected)
    assert found.labels.tolist() == request_.images.labels


def test_a_second_request_computes_nothing(request_: Request, tmp_path: Path) -> None:
    network = Counting()
    first = stored(request_, network, tmp_path)
    calls = network.calls
    second = stored(request_, network, tmp_path)
    assert network.calls == calls
    torch.testing.assert_close(first.pooled, second.pooled, atol=0, rtol=0)


def test_whatever_decides_the_features_decides_the_key(request_: Request) -> None:
    other_view = ImageConfig(size=24, resize=32).augment((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    other_pixels = ImageConfig(size=32, resize=32).augment((0.4, 0.5, 0.5), (0.25, 0.25, 0.25))
    variants = [
        request_,
        replace(request_, backbone_digest="1" * 64),
        replace(request_, augment=other_view),
        replace(request_, augment=other_pixels),
        replace(request_, depths=("layer3",)),
        replace(request_, precision="bf16"),
        replace(request_, images=request_.images.take([0, 1, 2])),
    ]
    assert len({v.key for v in variants}) == len(variants)


def test_the_digest_sees_a_changed_file(tmp_path: Path, images: Path) -> None:
    from_disk = DataConfig(root=images, split="val", cache_gib=0)
    copied = tmp_path / "val"
    for path in (images / "val").rglob("*.png"):
        target = copied / path.relative_to(images / "val")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    before = digest(build_dataset(from_disk.model_copy(update={"root": tmp_path})))
    assert digest(build_dataset(from_disk.model_copy(update={"root": tmp_path}))) == before
    victim = next(copied.rglob("*.png"))
    victim.write_bytes(next((images / "train").rglob("*.png")).read_bytes())
    assert digest(build_dataset(from_disk.model_copy(update={"root": tmp_path}))) != before


@pytest.mark.parametrize("damage", ["flip a byte", "cut short", "no meta", "garbled meta", "lose a file"])
def test_a_damaged_entry_is_computed_again(
    damage: str, request_: Request, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = Counting()
    whole = stored(request_, network, tmp_path)
    expected, calls = whole.pooled.clone(), network.calls
    data, meta = whole.path / "features.pooled.npy", whole.path / "meta.json"
    content = data.read_bytes()
    if damage == "flip a byte":
        data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut short":
        data.write_bytes(content[:-40])
    elif damage == "no meta":
        meta.unlink()
    elif damage == "garbled meta":
        meta.write_text(meta.read_text()[:-30])
    else:
        (whole.path / "labels.npy").unlink()
    again = stored(request_, network, tmp_path)
    assert network.calls > calls
    assert "damaged" in caplog.text
    torch.testing.assert_close(again.pooled, expected, atol=0, rtol=0)


def test_what_an_interrupted_computation_left_is_never_read(request_: Request, tmp_path: Path) -> None:
    class Dying(Counting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        stored(request_, Dying(), tmp_path)
    assert not (tmp_path / request_.key).exists()
    assert torch.isfinite(stored(request_, Counting(), tmp_path).pooled).all()


def test_features_that_are_not_finite_name_the_image(request_: Request, tmp_path: Path) -> None:
    class Broken(Counting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = super().forward(x)
            if self.calls == 3:
                features[1] = torch.nan
            return features

    assert request_.images.paths is not None
    # The first call measures the width; the third is the second batch of seven.
    with pytest.raises(WorkError, match=str(request_.images.paths[8])):
        stored(request_, Broken(), tmp_path)


def test_depths_are_stages_averaged_over_the_image() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneConfig(arch="resnet18")).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found = pooled(backbone, x, ("layer2", "pooled"))
        maps = feature_maps(backbone, x)
        np.testing.assert_allclose(found["layer2"], maps["layer2"].mean(dim=(2, 3)), rtol=1e-6)
        np.testing.assert_allclose(found["pooled"], backbone(x), rtol=1e-4, atol=1e-6)
        with pytest.raises(UserError, match=r"depth 'layer9'.*layer1"):
            pooled(backbone, x, ("layer9",))
