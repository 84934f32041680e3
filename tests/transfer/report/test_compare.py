"""Two runs side by side: numbers of the same protocol, and what differs in the recipes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from carryover.configs import UserError
from carryover.core.formats.backbone import BackboneConfig
from carryover.core.formats.canonical import CanonicalMetadata, save_canonical
from carryover.transfer.report.compare import compare
from carryover.transfer.report.statistics import welch
from carryover.transfer.results.record import Metric, write_record
from tests.core.backbones.layouts import network
from tests.transfer.records import record


def write_run(run: Path, *values: float, lr: float = 0.1, **changes: Any) -> Path:
    """Write a run of one pretraining, evaluated under one protocol with as many seeds as values."""
    stage = run / "pretrain"
    stage.mkdir(parents=True)
    (stage / "recipe.yaml").write_text(f"name: x\nseed: 3\noptimizer:\n  base_lr: {lr}\n", encoding="utf-8")
    checkpoint = str(stage / "backbone.safetensors")
    for seed, value in enumerate(values):
        write_record(record(value, seed=seed, checkpoint=checkpoint, **changes), run / f"evaluate-{seed}")
    return run


def test_numbers_are_compared_with_welchs_interval(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", 50.0, 52.0)
    second = write_run(tmp_path / "b", 60.0, 61.0, method="simo", pretrain_recipe="simo_demo")
    (line,) = compare(first, second).lines
    assert (line.evaluation, line.metric, line.difference) == ("one_percent", "Top 1", 9.5)
    assert line.interval == welch([60.0, 61.0], [50.0, 52.0])


def test_single_runs_have_a_difference_and_no_interval(tmp_path: Path) -> None:
    (line,) = compare(write_run(tmp_path / "a", 50.0), write_run(tmp_path / "b", 49.0)).lines
    assert line.difference == -1.0 and line.interval is None


def test_recipes_are_compared_setting_by_setting(tmp_path: Path) -> None:
    found = compare(write_run(tmp_path / "a", 50.0), write_run(tmp_path / "b", 50.0, lr=0.2))
    assert [(d.key, d.first, d.second) for d in found.recipe] == [("optimizer.base_lr", "0.1", "0.2")]


def test_an_evaluations_recipe_beside_its_import_is_none_of_the_pretraining(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a", 50.0), write_run(tmp_path / "b", 50.0, method="simo")
    (second / "pretrain" / "recipe.yaml").write_text("task: knn\nk: [5]\nname: small_knn\n", encoding="utf-8")
    found = compare(first, second).recipe
    assert [(d.key, d.first, d.second) for d in found] == [("method", "unigrad", "simo")]


def test_other_protocols_are_named_and_not_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", 50.0)
    found = compare(first, write_run(tmp_path / "b", 50.0, recipe="ten_percent", recipe_hash="c" * 64))
    assert (
        found.lines == () and found.only_first == ("one_percent",) and found.only_second == ("ten_percent",)
    )


def test_runs_of_several_pretrainings_are_compared_where_both_have_them(tmp_path: Path) -> None:
    for name, value in (("a", 50.0), ("b", 55.0)):
        write_run(tmp_path / name, value)
        write_record(record(value, method="simo", pretrain_recipe=name), tmp_path / name / "other")
    found = compare(tmp_path / "a", tmp_path / "b")
    assert [(line.evaluation, line.difference) for line in found.lines] == [("UniGrad: one_percent", 5.0)]


def test_checkpoints_are_compared_by_what_they_say_of_themselves(tmp_path: Path) -> None:
    paths = []
    for epochs in (100, 200):
        metadata = CanonicalMetadata(
            backbone=BackboneConfig(arch="resnet18"),
            input_size=64,
            method="unigrad",
            epochs=epochs,
            dataset="shapes",
            seed=0,
            recipe="unigrad_demo",
            recipe_hash=None,
            git_revision="abc",
            library_versions={},
        )
        paths.append(tmp_path / f"{epochs}.safetensors")
        save_canonical(paths[-1], {"conv1.weight": torch.zeros(1)}, metadata)
    keys = {d.key: (d.first, d.second) for d in compare(*paths).recipe}
    assert set(keys) == {"epochs", "sha256"} and keys["epochs"] == ("100.0", "200.0")
    assert compare(*paths).tensors == "1 of 1 tensors of the backbones are equal"
    # Files of other makers too, two imports of which differ in more than their hashes.
    theirs = [tmp_path / "one.pth", tmp_path / "two.pth"]
    for seed, path in enumerate(theirs):
        state = network(0).state_dict()
        state["layer4.1.conv2.weight"][0, 0, 0, 0] += seed
        torch.save(state, path)
    assert compare(*theirs).tensors == (
        "119 of 120 tensors of the backbones are equal; the largest difference is 1, of layer4.1.conv2.weight"
    )


def test_one_recipe_on_two_back_ends_is_shown_with_what_differs(tmp_path: Path) -> None:
    kept = {"task": "segmentation", "recipe": "fields"}
    metrics = [(Metric(name="mIoU", value=v, n=9, low=v - 3, high=v + 4),) for v in (40.0, 42.0)]
    runs = [
        write_run(
            tmp_path / backend,
            0.0,
            backend=backend,
            recipe_hash=backend[0] * 64 if backend[0] in "abcdef" else "e" * 64,
            protocol={"task": "segmentation", "backend": backend},
            metrics=of,
            **kept,
        )
        for backend, of in zip(("torchvision", "dmmseg"), metrics)
    ]
    found = compare(*runs)
    (line,) = found.lines
    assert not found.only_first and not found.only_second
    assert "backend: torchvision" in line.note and "dmmseg" in line.note
    assert line.difference == 2.0 and line.interval is not None and not line.interval.excludes_zero
    assert (line.first.brackets(), line.second.brackets()) == ("[37.0, 44.0]", "[39.0, 46.0]")


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", 50.0)
    with pytest.raises(UserError, match="no such run"):
        compare(run, tmp_path / "nowhere")
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(UserError, match="two checkpoints or two runs"):
        compare(run, tmp_path / "x.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to compare"):
        compare(run, tmp_path / "empty")
    other = write_run(tmp_path / "b", 50.0, pretrain_recipe="p", method="simo")
    write_record(record(pretrain_recipe="q"), other / "more")
    with pytest.raises(UserError, match="no pretraining is in both"):
        compare(run, other)
