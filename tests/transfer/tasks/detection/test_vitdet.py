"""ViTDet's training: AdamW by depth, large-scale jitter, squares; in both libraries alike."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from carryover.configs import UserError, load
from carryover.core.backbones.build import build_backbone
from carryover.core.data.objects.splits import read_splits
from carryover.core.formats.metrics_log import read_metrics
from carryover.transfer.tasks.detection.config import DetectionConfig, InputConfig, SolverConfig
from carryover.transfer.tasks.detection.model import decay_of
from carryover.transfer.tasks.detection.model_config import FPNConfig
from carryover.transfer.tasks.detection.pyramid import as_trained, attending, require_detectable
from carryover.transfer.tasks.detection.torchvision.model import build_detector
from carryover.transfer.tasks.detection.transforms import train_example
from carryover.transfer.tasks.evaluate import evaluate
from carryover.transfer.tasks.optimizers import build_layered
from tests.core.backbones.makers_networks import randomized
from tests.interrupting import in_two_parts
from tests.transfer.convert.timm_backbones import write_timm
from tests.transfer.tasks.detection import runs
from tests.transfer.tasks.detection.test_pyramids import config as timm_config

SOLVER = SolverConfig(
    algorithm="adamw", layer_decay=0.7, base_lr=1e-4, weight_decay=0.1, max_iter=10, warmup_iters=1
)
MODEL = FPNConfig(name="fpn", fpn_norm="LN", head_norm="LN", box_convs=1, fpn_dim=16, box_fc_dim=32)
WINDOWED = MODEL.model_copy(update={"window_size": 4, "relative_positions": True})
KEYS = (
    "solver.algorithm=adamw",
    "solver.layer_decay=0.7",
    "solver.base_lr=0.002",
    "solver.weight_decay=0.1",
    "input.jitter=[0.5, 2.0]",
    "input.square=96",
    "input.max_size_test=96",
    "input.min_size_test=96",
    "log_every=1",
    "model.window_size=4",
    "model.relative_positions=true",
)
WORDS = "in windows of 4 x 4 patches, but in blocks 2, 5, 8, 11 to the whole image; with relative positions"


def test_groups_have_the_factor_of_their_depth_and_the_decay_of_their_kind() -> None:
    about = timm_config("vit_tiny_patch16_224")
    network = randomized(build_backbone(about))
    trained, weights, _ = as_trained(about, network.state_dict(), WINDOWED, InputConfig())
    detector = build_detector(trained, weights, WINDOWED, InputConfig(), 3, seed=0)
    optimizer = build_layered(detector, network, ("backbone.body.",), SOLVER, decay_of(SOLVER))
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    found = {
        name.replace("inner.", ""): (round(g["factor"], 8), g["weight_decay"])
        for name, p in detector.named_parameters()
        if (g := group_of.get(id(p))) is not None
    }
    body = "backbone.body."
    assert found[f"{body}pos_embed"] == (pytest.approx(0.7**13), 0.0)
    assert found[f"{body}blocks.0.attn.qkv.weight"] == (pytest.approx(0.7**12), 0.1)
    assert found[f"{body}blocks.11.norm2.weight"] == (pytest.approx(0.7), 0.0)
    # Detectron2's ViTDet leaves only `pos_embed` undecayed.
    assert found[f"{body}blocks.3.attn.rel_pos_h"] == (pytest.approx(0.7**9), 0.1)
    # Detectron2 does not take its channel-wise layer normalization for one.
    assert found["backbone.simfp_2.1.weight"] == found["roi_heads.box_predictor.cls_score.bias"] == (1, 0.1)
    untrained = {n for n, p in detector.named_parameters() if not p.requires_grad}
    assert len(group_of) + len(untrained) == len(list(detector.parameters()))
    assert all("norm." in n for n in untrained) and len(untrained) == 2


@pytest.mark.parametrize(("factor", "size"), [(0.5, (48, 64)), (2.0, (64, 64))])
def test_jitter_fits_the_square_and_crops_what_is_larger(factor, size, shapes) -> None:
    recipe = runs.recipe("demo_mask_fpn", shapes)
    source = read_splits(recipe.data, needs_masks=True).train.images[1]
    longest = max(source.width, source.height)
    shown = InputConfig(jitter=(factor, factor), square=64, max_size_test=64, min_size_test=64)
    example = train_example(source, shown, True, np.random.default_rng(0))
    expected = [min(64, round(side * factor * 64 / longest)) for side in (source.height, source.width)]
    assert list(example.image.shape[-2:]) == expected
    masks, boxes = example.target["masks"], example.target["boxes"]
    assert len(boxes) > 0 and list(masks.shape[-2:]) == expected
    for mask, box in zip(masks, boxes, strict=True):
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == [float(v) for v in around]


def test_a_run_learns_and_resumes_exactly(shapes, tmp_path, monkeypatch) -> None:
    _learns_and_resumes("torchvision", shapes, tmp_path, monkeypatch)


@pytest.mark.detectron2
def test_a_run_in_detectron2_learns_and_resumes_exactly(shapes, tmp_path, monkeypatch) -> None:
    _learns_and_resumes("detectron2", shapes, tmp_path, monkeypatch)


def _learns_and_resumes(backend, shapes, tmp_path, monkeypatch) -> None:
    source = write_timm(tmp_path / "source.safetensors", "vit_tiny_patch16_224")
    recipe = runs.recipe(
        "demo_mask_fpn",
        shapes,
        *KEYS,
        f"backend={backend}",
        "model.norm=BN",
        "model.fpn_norm=LN",
        "model.head_norm=none",
        "model.mask_dim=16",
        "solver.max_iter=12",
        "solver.steps=[10]",
    )
    record = evaluate(recipe, source, tmp_path / "whole")
    assert record.facts["attention"] == WORDS
    losses = [row["loss"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert sum(losses[-3:]) < sum(losses[:3])
    in_two_parts(lambda: evaluate(recipe, source, tmp_path / "parts"), 3, monkeypatch)
    runs.assert_same_files(tmp_path / "whole", tmp_path / "parts")
    trained = load_file(tmp_path / "whole" / "detector.safetensors")
    tables = [value for name, value in trained.items() if "rel_pos" in name]
    # Six patches a side of the square.
    assert {tuple(table.shape) for table in tables} == {(7, 64), (11, 64)} and len(tables) == 24
    assert all(table.any() for table in tables)
    if backend == "detectron2":
        receipt = json.loads((tmp_path / "whole" / "backbone.pkl.receipt.json").read_text())
        vit = receipt["settings"]["detectron2.modeling.ViT"]
        assert (vit["window_size"], vit["use_rel_pos"], vit["img_size"]) == (4, True, 96)
        assert vit["window_block_indexes"] == [0, 1, 3, 4, 6, 7, 9, 10]
        assert any(WORDS in note for note in receipt["notes"])
        assert not any("rel_pos" in tensor["name"] for tensor in receipt["tensors"])


@pytest.mark.detectron2
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "windows"])
def test_detectron2_gives_every_parameter_the_rate_and_decay_that_torchvision_does(name: str) -> None:
    from carryover.transfer.tasks.detection.detectron2.backend import TRUNKS
    from tests.transfer.tasks.detection.detectron2_twin import give_weights, twin

    model, name = (WINDOWED, "vit_tiny_patch16_224") if name == "windows" else (MODEL, name)
    about = timm_config(name)
    network = randomized(build_backbone(about))
    trained, weights, _ = as_trained(about, network.state_dict(), model, InputConfig())
    ours = build_detector(trained, weights, model, InputConfig(), 3, seed=0)
    theirs = twin(model, about, 3)
    give_weights(ours, theirs, model)
    counts = []
    for model, trunks in ((ours, ("backbone.body.",)), (theirs, TRUNKS)):
        groups = build_layered(model, network, trunks, SOLVER, decay_of(SOLVER)).param_groups
        of_network = [g for g in groups if g["factor"] < 1]
        counts.append({(g["factor"], g["weight_decay"]): len(g["params"]) for g in of_network})
    assert counts[0] == counts[1] and len(counts[0]) > 6


def test_an_optimizer_without_layers_is_torchs_adamw() -> None:
    model = torch.nn.Linear(2, 3)
    solver = SOLVER.model_copy(update={"layer_decay": 1.0})
    found = build_layered(model, torch.nn.Identity(), (), solver, decay_of(solver))
    assert isinstance(found, torch.optim.AdamW)
    assert [(g["factor"], g["weight_decay"]) for g in found.param_groups] == [(1.0, 0.1)]


@pytest.mark.parametrize(
    ("name", "network"), [("vitdet_b_coco", "vit_tiny_patch16_224"), ("coco_fpn_convnext", "convnext_atto")]
)
def test_a_shipped_recipe_takes_a_step(name, network, shapes, tmp_path) -> None:
    data = runs.recipe("demo_mask_fpn", shapes).data.model_dump(mode="json")
    plain = load("transfer", name, ["solver.ims_per_batch=2"]).model_dump(mode="json") | {"data": data}
    size = {"min_sizes_train": [96], "max_size_train": 128, "min_size_test": 96, "max_size_test": 96}
    plain["input"] |= size | ({"square": 128} if name.startswith("vitdet") else {})
    plain["solver"] |= {"reference_ims_per_batch": 2, "max_iter": 2, "steps": [1], "warmup_iters": 1}
    plain["solver"] |= {"precision": "fp32"}
    plain["model"] |= {"fpn_dim": 16, "box_conv_dim": 16, "box_fc_dim": 16, "mask_dim": 16}
    plain["model"]["rpn"] |= {"post_nms_train": 16, "post_nms_test": 8}
    recipe = DetectionConfig.model_validate(plain | {"workers": 0, "samples": 1})
    record = evaluate(recipe, write_timm(tmp_path / "b.safetensors", network), tmp_path / "out")
    assert record.model == "Mask R-CNN FPN" and record.facts["iterations"] == 2


def test_vitdets_recipe_says_what_detectron2s_configuration_says() -> None:
    recipe = load("transfer", "vitdet_b_coco")
    solver, shown = recipe.solver, recipe.input
    assert (solver.peak_lr, solver.layer_decay, solver.weight_decay, solver.iterations) == (
        1e-4,
        0.7,
        0.1,
        184375,
    )
    assert (solver.milestones, solver.warmup, solver.ims_per_batch) == ((163889, 177546), 250, 64)
    assert (shown.jitter, shown.square, recipe.model.drop_path) == ((0.1, 2.0), 1024, 0.1)
    assert (recipe.model.rpn.head_convs, recipe.model.box_convs, recipe.model.box_fcs) == (2, 4, 1)
    assert (recipe.model.window_size, recipe.model.relative_positions) == (14, True)
    base = attending(timm_config("vit_base_patch16_224"), recipe.model, shown).attention
    assert base is not None and (base.global_blocks, base.grid) == ((2, 5, 8, 11), 64)


def test_vitdets_recipe_of_vit_l_differs_as_detectron2s_does() -> None:
    base, large = load("transfer", "vitdet_b_coco"), load("transfer", "vitdet_l_coco")
    assert (large.model.drop_path, large.solver.layer_decay) == (0.4, 0.8)
    assert large.model.model_copy(update={"drop_path": 0.1}) == base.model
    assert large.solver.model_copy(update={"layer_decay": 0.7}) == base.solver
    assert (large.input, large.data) == (base.input, base.data)
    found = attending(timm_config("vit_large_patch16_224"), large.model, large.input).attention
    assert found is not None and found.global_blocks == (5, 11, 17, 23)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("vit_small_patch14_reg4_dinov2", {"window_size": 4}, "registers attend too"),
        ("convnext_atto", {"relative_positions": True}, "is no plain transformer"),
        (
            "vit_tiny_patch16_224",
            {"window_size": 4, "global_blocks": (3, 12)},
            r"\[12\].* has 12 blocks",
        ),
    ],
)
def test_windows_that_a_network_cannot_have_are_refused(name, keys, message) -> None:
    with pytest.raises(UserError, match=message):
        require_detectable(timm_config(name), FPNConfig(name="fpn", **keys))


@pytest.mark.detectron2
def test_detectron2_keeps_the_token_of_a_network_that_its_vit_cannot_be() -> None:
    from carryover.transfer.tasks.detection.detectron2.backend import tokens_in_words

    # A norm before the first block.
    about = timm_config("vit_base_patch16_clip_224")
    with torch.device("meta"):
        network = build_backbone(about)
    source = SimpleNamespace(metadata=SimpleNamespace(backbone=about), backbone=network)
    keys = ["data.root=none", "backend=detectron2"]
    assert tokens_in_words(source, load("transfer", "demo_faster_fpn", keys)).startswith("kept")
    for more, message in (("prefix_tokens=drop", "tokens and all"), ("window_size=4", "own ViT")):
        with pytest.raises(UserError, match=message):
            tokens_in_words(source, load("transfer", "demo_faster_fpn", [*keys, f"model.{more}"]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"global_blocks": (2,)}, "without windows every block"),
        ({"window_size": 14, "prefix_tokens": "keep"}, "of patches alone"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys, message) -> None:
    with pytest.raises(ValidationError, match=message):
        FPNConfig(name="fpn", **keys)
