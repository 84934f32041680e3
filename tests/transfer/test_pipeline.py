"""A pipeline is a graph: every pretraining proven, evaluated over its seeds, and reported."""

from pathlib import Path

import pytest

from configs import UserError, load
from slurm.stage import Output
from transfer.pipeline import plan
from transfer.pipeline_config import PipelineConfig


def pipeline(tmp_path: Path, text: str, *overrides: str) -> PipelineConfig:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    config = load("pipelines", path, overrides)
    assert isinstance(config, PipelineConfig)
    return config


SMALL = """
shapes: {n_train: 20, n_val: 10, n_detection: 8}
roots: {images: shapes:classification}
pretrain:
  - {recipe: unigrad_demo, seeds: [0, 1], overrides: ["data.root=${roots.images}"]}
  - {recipe: random_demo, label: scratch, overrides: ["data.root=${roots.images}"]}
evaluate:
  - {recipe: demo_finetune_1percent, seeds: [0, 1, 2], overrides: ["data.root=${roots.images}"]}
"""


def test_every_checkpoint_is_proven_then_evaluated_over_every_seed(tmp_path: Path) -> None:
    graph = plan(pipeline(tmp_path, SMALL), tmp_path / "run")
    assert len(graph) == 1 + 3 + 3 + 3 * 3 + 1
    stage = graph["evaluate/unigrad_demo-seed1/demo_finetune_1percent-seed2"]
    assert set(stage.upstream) == {"convert/unigrad_demo-seed1", "pretrain/unigrad_demo-seed1", "data/shapes"}
    assert stage.params["recipe"]["seed"] == 2
    assert stage.params["recipe"]["data"]["root"] == Output("data/shapes", "data/classification")
    assert stage.params["checkpoint"] == Output("pretrain/unigrad_demo-seed1", "backbone.safetensors")
    assert len(graph["report"].after) == 9
    assert "pretrain/scratch-seed0" in graph


def test_the_demo_has_what_the_readme_promises(tmp_path: Path) -> None:
    graph = plan(load("pipelines", "demo"), tmp_path)
    evaluations = {name.split("/", 1)[1] for name in graph.names if name.startswith("evaluate/")}
    for method in ("unigrad", "simo", "sqrtkl", "supervised", "random"):
        for recipe in ("faster_fpn", "faster_c4", "mask_fpn", "finetune_1percent", "finetune_10percent"):
            assert f"{method}_demo-seed0/demo_{recipe}-seed0" in evaluations


def test_a_recipe_that_does_not_resolve_stops_the_plan(tmp_path: Path) -> None:
    wrong = SMALL.replace("data.root=${roots.images}", "data.rot=${roots.images}")
    with pytest.raises(UserError, match=r"data\.rot.*'root'"):
        plan(pipeline(tmp_path, wrong), tmp_path)


def test_a_root_that_is_not_declared_is_named(tmp_path: Path) -> None:
    wrong = SMALL.replace("${roots.images}", "${roots.imgs}")
    with pytest.raises(UserError, match=r"mine\.yaml: pretrain.*roots\.imgs"):
        plan(pipeline(tmp_path, wrong), tmp_path)


def test_a_root_of_the_users_own_must_exist_before_anything_runs(tmp_path: Path) -> None:
    graph = plan(pipeline(tmp_path, SMALL, "roots.images=/nowhere"), tmp_path)
    assert graph["pretrain/unigrad_demo-seed0"].requires == (Path("/nowhere"),)


def test_shapes_must_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shapes"):
        plan(
            pipeline(tmp_path, SMALL.replace("shapes: {n_train: 20, n_val: 10, n_detection: 8}", "")),
            tmp_path,
        )


def test_two_entries_of_one_name_need_labels(tmp_path: Path) -> None:
    twice = SMALL.replace("label: scratch, ", "").replace("random_demo", "unigrad_demo")
    with pytest.raises(UserError, match="'unigrad_demo' is there twice"):
        pipeline(tmp_path, twice)


def test_a_checkpoint_of_ones_own_is_an_input_by_content(tmp_path: Path) -> None:
    (tmp_path / "theirs.pth").write_bytes(b"weights")
    text = f"""
checkpoints: [{{path: {tmp_path / "theirs.pth"}, label: theirs}}]
shapes: {{}}
evaluate: [{{recipe: demo_finetune_1percent, overrides: ["data.root=shapes:classification"]}}]
"""
    config = pipeline(tmp_path, text)
    before = plan(config, tmp_path).hashes()
    (tmp_path / "theirs.pth").write_bytes(b"other weights")
    after = plan(config, tmp_path).hashes()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == set(before) - {"data/shapes"}
    with pytest.raises(UserError, match="no such file"):
        plan(pipeline(tmp_path, text.replace("theirs.pth", "gone.pth")), tmp_path)


def test_resources_of_an_unknown_kind_of_stage_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resources"):
        pipeline(tmp_path, SMALL, "resources.pretraining.nodes=4")
    with pytest.raises(UserError, match="nods"):
        pipeline(tmp_path, SMALL, "resources.pretrain.nods=4")
    graph = plan(pipeline(tmp_path, SMALL, "resources.pretrain.nodes=4"), tmp_path)
    assert graph["pretrain/unigrad_demo-seed0"].resources.nodes == 4
