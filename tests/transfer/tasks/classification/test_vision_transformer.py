"""A vision transformer of timm through the tasks on labeled images, from the file of its maker."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from carryover.core.formats.metrics_log import read_metrics
from carryover.core.formats.said import Said
from carryover.transfer.results.record import load_record
from carryover.transfer.tasks.evaluate import canonical_of, evaluate
from tests.core.backbones.makers_networks import randomized
from tests.interrupting import in_two_parts
from tests.transfer.tasks.classification.test_finetune import assert_same_weights
from tests.transfer.tasks.classification.test_finetune import recipe as finetune
from tests.transfer.tasks.classification.test_probes import recipe


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DINO's file of a small vision transformer for 32 px, in canonical form."""
    folder = tmp_path_factory.mktemp("dino")
    model = randomized(timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0))
    teacher = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    torch.save({"teacher": teacher, "epoch": 100}, folder / "dino.pth")
    return canonical_of(folder / "dino.pth", folder, None, Said(label="mine"))


def test_neighbors_by_the_tokens_that_the_recipe_names(images: Path, imported: Path, tmp_path: Path) -> None:
    record = evaluate(recipe("knn_cifar10", images, "k=[5]", "feature=cls@4+mean"), imported, tmp_path)
    assert (record.backbone, record.pretrain_label) == ("vit_tiny_patch16_224", "mine")
    assert (record.method, record.pretrain_epochs) == ("DINO", 100)
    assert record.facts["feature_dimensions"] == 5 * 192
    # Of DINO's own networks the attention heads are known; of its images the file says nothing.
    assert set(record.assumed) == {"pixels", "input_size"}
    assert load_record(tmp_path / "result.json").assumed == record.assumed
    stored = [np.load(file) for file in (imported.parent / "features").glob("*/features.cls@4+mean.npy")]
    assert sorted(map(len, stored)) == [24, 60]


def test_fine_tuning_learns_and_resumes_exactly(
    images: Path, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = finetune(images, "optimizer.base_lr_backbone=0.01", "optimizer.base_lr_head=0.05")
    evaluate(config, imported, tmp_path / "whole")
    losses = [line["loss"] for line in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    in_two_parts(lambda: evaluate(config, imported, tmp_path / "parts"), 6, monkeypatch)
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
