"""Fine-tuning as MAE does it, and the attentive probe: rates by depth, AdamW, pooling, exact resume."""

import math
from pathlib import Path

import pytest
import timm
import torch

from carryover.configs import UserError
from carryover.core.backbones.build import build_backbone
from carryover.core.backbones.layers import rate_factors
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.metrics_log import read_metrics
from carryover.transfer.tasks.evaluate import evaluate
from carryover.transfer.tasks.finetune.attentive import AttentivePool, tokens_of
from carryover.transfer.tasks.finetune.config import AttentiveConfig
from carryover.transfer.tasks.finetune.model import Classifier, build_optimizer
from carryover.transfer.tasks.finetune.selection import as_tuned
from carryover.transfer.tasks.schedules import CosineSchedule, rate_factor
from tests.core.backbones.makers_networks import randomized
from tests.interrupting import in_two_parts
from tests.transfer.convert.timm_backbones import write_timm
from tests.transfer.tasks.classification.test_finetune import assert_same_weights, recipe

VIT = BackboneConfig(arch="timm/vit_tiny_patch16_224", input_size=32)
MAE = (
    "optimizer={algorithm: adamw, base_lr_backbone: 0.001, base_lr_head: 0.001, lr_per: 8,"
    " weight_decay: 0.05, layer_decay: 0.65, decay_norm_and_bias: false}",
    "schedule={name: cosine, epochs: 4, rise: 1}",
    "feature=fc_norm",
    "drop_path=0.1",
    "smoothing=0.1",
    "head_init=truncated",
    "head_norm=none",
)
PROBE = (
    "freeze_backbone=true",
    "bn=eval",
    "head_norm=none",
    "attentive={heads: 3}",
    "optimizer={algorithm: adamw, base_lr_backbone: 0, base_lr_head: 0.003, lr_per: 8}",
)


def test_rates_of_a_transformer_are_those_of_maes_own_rule() -> None:
    network = build_backbone(VIT)
    found = rate_factors(network, 0.65)

    def layer(name: str) -> int:
        # Written after util/lr_decay.py of the authors.
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else 13

    # A detector may add relative positions to every block.
    added = {f"blocks.{i}.attn.rel_pos_{axis}" for i in range(12) for axis in "hw"}
    names = added | set(network.state_dict())
    assert found == {n: pytest.approx(0.65 ** (13 - layer(n))) for n in names}
    assert found["norm.weight"] == 1 and found["blocks.11.attn.qkv.weight"] == pytest.approx(0.65)


@pytest.mark.parametrize("arch", ["timm/convnext_atto", "timm/swin_tiny_patch4_window7_224", "resnet18"])
def test_rates_of_other_networks_fall_from_the_head_to_the_stem(arch: str) -> None:
    network = build_backbone(BackboneConfig(arch=arch))
    found = rate_factors(network, 0.5)
    assert set(found) == {name.replace("inner.", "") for name, _ in network.named_parameters()}
    first, *_, last = found.values()
    assert first < last <= 0.5


def test_weights_alone_are_decayed_and_every_parameter_is_in_one_group(images: Path) -> None:
    config = recipe(images, *MAE)
    network = build_backbone(VIT)
    model = Classifier(network, 192, 5, config)
    optimizer = build_optimizer(model, config, 1e-3, 2e-3)
    assert isinstance(optimizer, torch.optim.AdamW)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(group_of) == len(list(model.parameters()))
    named = dict(model.named_parameters())
    for name, rate, decay in (
        ("head.weight", 2e-3, 0.05),
        ("head.bias", 2e-3, 0.0),
        ("backbone.inner.pos_embed", 1e-3 * 0.65**13, 0.0),
        ("backbone.inner.blocks.3.mlp.fc1.weight", 1e-3 * 0.65**9, 0.05),
        ("backbone.inner.blocks.3.norm1.weight", 1e-3 * 0.65**9, 0.0),
    ):
        group = group_of[id(named[name])]
        assert (group["peak_lr"], group["weight_decay"]) == (pytest.approx(rate), decay), name


def test_the_rate_rises_then_falls_along_half_a_cosine() -> None:
    schedule = CosineSchedule(epochs=10, rise=2)
    rates = [rate_factor(schedule, step, 5) for step in range(50)]
    assert rates[:3] == pytest.approx([0, 0.1, 0.2]) and max(rates) == rates[10] == 1
    assert rates[30] == pytest.approx(0.5) and rates[-1] < 0.01
    # lr_sched.py of MAE: the warm-up begins at zero, the cosine ends at the lowest rate.
    ending = CosineSchedule(epochs=10, rise=2, end=0.2)
    falls = [0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (step / 5 - 2) / 8)) for step in range(10, 50)]
    assert [rate_factor(ending, step, 5) for step in range(50)] == pytest.approx([*rates[:10], *falls])
    with pytest.raises(ValueError, match="leave nothing of 2"):
        CosineSchedule(epochs=2, rise=2)


def test_fc_norm_is_the_mean_of_the_patches_behind_a_new_norm(images: Path) -> None:
    config = recipe(images, "feature=fc_norm", "head_norm=none")
    source = randomized(build_backbone(VIT))
    about, weights = as_tuned(VIT, source.state_dict(), config)
    network = build_backbone(about).eval()
    network.load_state_dict(network.state_dict() | weights)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        patches = source.inner.forward_intermediates(x, intermediates_only=True)[-1].flatten(2)
        expected = torch.nn.functional.layer_norm(patches.mean(dim=2), (192,), eps=1e-6)
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=r"no last norm|no model of timm"):
        as_tuned(BackboneConfig(arch="resnet18"), {}, config)


def test_the_attentive_pool_is_softmax_attention_of_its_queries() -> None:
    torch.manual_seed(0)
    pool = AttentivePool(12, AttentiveConfig(heads=3, queries=2)).double().eval()
    pool.norm.running_mean.normal_()
    pool.norm.running_var.uniform_(0.5, 1.5)
    tokens = torch.randn(4, 7, 12, dtype=torch.float64)
    x = (tokens - pool.norm.running_mean) / (pool.norm.running_var + 1e-6).sqrt()
    keys, values = x @ pool.key.weight.T, x @ pool.value.weight.T
    found = torch.zeros(4, 12, dtype=torch.float64)
    for b in range(4):
        for query in pool.queries[0]:
            for head in range(3):
                at = slice(4 * head, 4 * head + 4)
                weights = ((keys[b, :, at] @ query[at]) / 4**0.5).softmax(dim=0)
                found[b, at] += weights @ values[b, :, at] / 2
    torch.testing.assert_close(pool(tokens), found)


def test_tokens_are_timms_patches_after_the_last_norm_or_the_cells_of_the_last_map() -> None:
    network = randomized(build_backbone(VIT))
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    theirs.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(tokens_of(network, x), theirs.forward_features(x)[:, 1:])
        resnet = build_backbone(BackboneConfig(arch="resnet18")).eval()
        torch.testing.assert_close(tokens_of(resnet, x).mean(dim=1), resnet(x))


@pytest.mark.parametrize("keys", [MAE, PROBE], ids=["fine-tuning", "attentive probe"])
def test_a_run_learns_and_resumes_exactly(keys, images, tmp_path, monkeypatch) -> None:
    source = write_timm(tmp_path / "source.safetensors", "vit_tiny_patch16_224", input_size=32)
    config = recipe(images, *keys)
    record = evaluate(config, source, tmp_path / "whole")
    assert record.task == ("attentive" if keys is PROBE else "finetune")
    losses = [row["loss"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    in_two_parts(lambda: evaluate(config, source, tmp_path / "parts"), 4, monkeypatch)
    assert_same_weights(tmp_path / "parts", tmp_path / "whole")
    if keys is PROBE:
        assert record.facts["unchanged_tensors"] == len(build_backbone(VIT).state_dict())


def test_what_a_recipe_cannot_ask_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="freeze_backbone: true"):
        recipe(images, "attentive={heads: 3}")
    source = write_timm(tmp_path / "source.safetensors", "vit_tiny_patch16_224", input_size=32)
    with pytest.raises(UserError, match="5 heads do not divide 192 channels"):
        evaluate(recipe(images, *PROBE[:-2], "attentive={heads: 5}", PROBE[-1]), source, tmp_path / "out")
