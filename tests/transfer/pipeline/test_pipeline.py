"""A pipeline is a graph: every pretraining proven, evaluated over its seeds, and reported."""

from pathlib import Path

import pytest
import torch
from torch import nn

from carryover.configs import UserError, load
from carryover.slurm.stage import Output
from carryover.transfer.pipeline.config import PipelineConfig
from carryover.transfer.pipeline.plan import plan
from tests.core.backbones.layouts import network


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
        more = ("faster_c4", "mask_fpn") if method in ("unigrad", "random") else ()
        for recipe in ("faster_fpn", "finetune_1percent", "finetune_10percent", "knn", *more):
            assert f"{method}_demo-seed0/demo_{recipe}-seed0" in evaluations


def test_one_precision_for_all_recipes_except_where_an_entry_has_its_own(tmp_path: Path) -> None:
    own = SMALL.replace("label: scratch, overrides: [", 'label: scratch, overrides: ["precision=bf16", ')
    own += '  - {recipe: demo_faster_fpn, overrides: ["data.root=${roots.images}"]}\n'
    graph = plan(pipeline(tmp_path, own, "precision=fp32"), tmp_path / "run")
    found = {
        name: graph[name].params["recipe"].get("precision")
        or graph[name].params["recipe"]["solver"]["precision"]
        for name in (
            "pretrain/unigrad_demo-seed1",
            "pretrain/scratch-seed0",
            "evaluate/scratch-seed0/demo_finetune_1percent-seed0",
            "evaluate/scratch-seed0/demo_faster_fpn-seed0",
        )
    }
    assert list(found.values()) == ["fp32", "bf16", "fp32", "fp32"]
    plain = plan(pipeline(tmp_path, own), tmp_path / "run")
    assert plain["pretrain/unigrad_demo-seed1"].params["recipe"]["precision"] == "bf16"


def test_a_recipe_that_does_not_resolve_stops_the_plan(tmp_path: Path) -> None:
    wrong = SMALL.replace("data.root=${roots.images}", "data.rot=${roots.images}")
    with pytest.raises(UserError, match=r"data\.rot.*'root'"):
        plan(pipeline(tmp_path, wrong), tmp_path)


def test_all_entries_that_do_not_resolve_are_named_at_once_with_their_place(tmp_path: Path) -> None:
    misspelt = '[0, 1, 2], overrides: ["shedule.epochs=2", '
    wrong = SMALL.replace("unigrad_demo", "unigrad_dmo").replace("[0, 1, 2], overrides: [", misspelt)
    with pytest.raises(UserError) as refused:
        plan(pipeline(tmp_path, wrong), tmp_path)
    first, second = str(refused.value).split("\nmine: ")
    assert first.startswith("mine: pretrain: unigrad_dmo: ")
    assert second.startswith("evaluate: demo_finetune_1percent: ") and "shedule" in second


def test_all_checkpoints_that_are_not_there_are_named_at_once(tmp_path: Path) -> None:
    given = "checkpoints: [{path: a.pth, label: a}, {path: b.pth, label: b}]\n"
    with pytest.raises(UserError, match=r"(?s)a\.pth.*b\.pth"):
        plan(pipeline(tmp_path, SMALL + given), tmp_path)


def test_a_root_that_is_not_declared_is_named(tmp_path: Path) -> None:
    wrong = SMALL.replace("${roots.images}", "${roots.imgs}")
    with pytest.raises(UserError, match=r"mine\.yaml: pretrain.*roots\.imgs"):
        plan(pipeline(tmp_path, wrong), tmp_path)


def test_a_root_of_the_users_own_must_exist_before_anything_runs(tmp_path: Path) -> None:
    graph = plan(pipeline(tmp_path, SMALL, "roots.images=/nowhere"), tmp_path)
    assert graph["pretrain/unigrad_demo-seed0"].requires == (Path("/nowhere"),)


def test_random_weights_need_no_images(tmp_path: Path) -> None:
    text = """
pretrain: [{recipe: random_r18}]
evaluate: [{recipe: knn_cifar10, overrides: [data.root=/images, image.input_size=any]}]
"""
    graph = plan(pipeline(tmp_path, text), tmp_path)
    assert graph["pretrain/random_r18-seed0"].requires == ()
    assert graph["evaluate/random_r18-seed0/knn_cifar10-seed0"].requires == (Path("/images"),)


def test_shapes_must_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shapes"):
        plan(
            pipeline(tmp_path, SMALL.replace("shapes: {n_train: 20, n_val: 10, n_detection: 8}", "")),
            tmp_path,
        )


def test_two_entries_of_one_name_need_labels(tmp_path: Path) -> None:
    twice = SMALL.replace("label: scratch, ", "").replace("random_demo", "unigrad_demo")
    with pytest.raises(UserError, match="'unigrad_demo' is listed twice"):
        pipeline(tmp_path, twice)


def test_a_checkpoint_of_ones_own_is_an_input_by_content(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.pth"
    torch.save({"state_dict": network(seed=0).state_dict()}, theirs)
    text = f"""
checkpoints: [{{path: {theirs}, label: theirs}}]
shapes: {{}}
evaluate:
  - recipe: demo_finetune_1percent
    overrides: ["data.root=shapes:classification", image.input_size=any]
"""
    config = pipeline(tmp_path, text)
    before = plan(config, tmp_path).hashes()
    torch.save({"state_dict": network(seed=1).state_dict()}, theirs)
    after = plan(config, tmp_path).hashes()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == set(before) - {"data/shapes"}
    with pytest.raises(UserError, match="no such file"):
        plan(pipeline(tmp_path, text.replace("theirs.pth", "gone.pth")), tmp_path)
    theirs.write_bytes(b"no weights at all")
    with pytest.raises(UserError, match="not a checkpoint"):
        plan(config, tmp_path)


def test_resources_of_an_unknown_kind_of_stage_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resources"):
        pipeline(tmp_path, SMALL, "resources.pretraining.nodes=4")
    with pytest.raises(UserError, match="nods"):
        pipeline(tmp_path, SMALL, "resources.pretrain.nods=4")
    graph = plan(pipeline(tmp_path, SMALL, "resources.pretrain.nodes=4"), tmp_path)
    assert graph["pretrain/unigrad_demo-seed0"].resources.nodes == 4


def test_an_entry_asks_for_what_it_says_before_what_its_kind_says(tmp_path: Path) -> None:
    text = SMALL.replace("label: scratch,", "label: scratch, resources: {nodes: 1, time_min: 5},")
    graph = plan(pipeline(tmp_path, text, "resources.pretrain={nodes: 4, partition: gpu}"), tmp_path)
    scratch = graph["pretrain/scratch-seed0"].resources
    assert (scratch.nodes, scratch.time_min, scratch.partition) == (1, 5, "gpu")
    assert graph["pretrain/unigrad_demo-seed0"].resources.nodes == 4
    with pytest.raises(UserError, match=r"resources.*'nods'"):
        pipeline(tmp_path, text.replace("nodes: 1", "nods: 1"))


def test_an_evaluation_may_be_for_some_pretrainings_only(tmp_path: Path) -> None:
    narrow = SMALL.replace("seeds: [0, 1, 2],", "seeds: [0, 1, 2], of: [scratch],")
    names = plan(pipeline(tmp_path, narrow), tmp_path).names
    assert {n.split("/")[1] for n in names if n.startswith("evaluate/")} == {"scratch-seed0"}
    with pytest.raises(UserError, match=r"of: nothing here is called 'scrath'; did you mean 'scratch'"):
        pipeline(tmp_path, narrow.replace("of: [scratch]", "of: [scrath]"))


def test_only_what_is_named_takes_part(tmp_path: Path) -> None:
    text = SMALL + '  - {recipe: demo_finetune_10percent, overrides: ["data.root=${roots.images}"]}\n'
    names = plan(pipeline(tmp_path, text, "only=[scratch, demo_finetune_10percent]"), tmp_path).names
    assert [n for n in names if not n.startswith(("data", "convert"))] == [
        "pretrain/scratch-seed0",
        "evaluate/scratch-seed0/demo_finetune_10percent-seed0",
        "report",
    ]
    some = plan(pipeline(tmp_path, text, "only=[scratch]"), tmp_path).names
    assert len([n for n in some if n.startswith("evaluate/")]) == 4
    with pytest.raises(UserError, match=r"only: nothing here is called 'scrach'; did you mean 'scratch'"):
        pipeline(tmp_path, text, "only=[scrach]")


def test_one_checkpoint_is_given_in_short(tmp_path: Path) -> None:
    path = tmp_path / "their best (v2).pth"
    torch.save({"state_dict": network(seed=0).state_dict()}, path)
    short = SMALL.replace(SMALL[SMALL.index("pretrain:") : SMALL.index("evaluate:")], "")
    # A size that is only assumed of a foreign file is no fact; one that was stated is.
    assert plan(pipeline(tmp_path, short, f"checkpoint={path}"), tmp_path)
    stated = f"checkpoints=[{{path: '{path}', input_size: 224}}]"
    with pytest.raises(UserError, match=r"image.size is 64, but checkpoint their-best"):
        plan(pipeline(tmp_path, short, stated), tmp_path)
    short = short.replace('.images}"]', '.images}", image.input_size=any]')
    with pytest.raises(UserError, match="checkpoint=FILE"):
        plan(pipeline(tmp_path, short), tmp_path)
    graph = plan(pipeline(tmp_path, short, f"checkpoint={path}"), tmp_path)
    assert graph["import/their-best-v2-"].inputs == (path,)
    assert len([n for n in graph.names if n.startswith("evaluate/")]) == 3
    with pytest.raises(UserError, match="momentum"):
        plan(pipeline(tmp_path, short, f"checkpoint={path}", "encoder=momentum"), tmp_path)
    with pytest.raises(UserError, match="encoder: belongs to checkpoint"):
        pipeline(tmp_path, SMALL, "encoder=momentum")


def test_an_evaluation_of_other_images_than_trained_on_is_refused_before_the_training(tmp_path: Path) -> None:
    """Of another size, or normalized differently: a classifier's and a detector's recipe alike."""
    images = '"data.root=${roots.images}"]}'
    for change, words in (
        (
            "augment.view.size=48",
            r"1percent: image.size is 64, but .* of pretrain: unigrad_demo .* crops of 48",
        ),
        (
            "augment.mean=[0.1,0.2,0.3]",
            r"faster_fpn: the checkpoint of pretrain: unigrad_demo: was .* pixel_mean",
        ),
    ):
        other = DETECTION.replace(images, images.replace("]}", f", '{change}']}}"), 1)
        with pytest.raises(UserError, match=words):
            plan(pipeline(tmp_path, other), tmp_path)


DETECTION = SMALL + '  - {recipe: demo_faster_fpn, overrides: ["data.root=shapes:detection"]}\n'


def test_a_backbone_that_no_detector_can_take_is_refused_before_anything_runs(tmp_path: Path) -> None:
    images = '"data.root=${roots.images}"]}'
    stem = DETECTION.replace(images, images.replace("]}", ", backbone.stem=cifar]}"), 1)
    with pytest.raises(UserError, match=r"unigrad_demo: its resnet18 with the cifar stem .*demo_faster_fpn"):
        plan(pipeline(tmp_path, stem), tmp_path)
    apart = stem.replace("{recipe: demo_faster_fpn,", "{recipe: demo_faster_fpn, of: [scratch],")
    with pytest.raises(UserError, match=r"unigrad_demo: .*convert: torchvision .*convert=\[canonical\]"):
        plan(pipeline(tmp_path, apart), tmp_path)
    assert len(plan(pipeline(tmp_path, apart, "convert=[canonical]"), tmp_path)) == 1 + 3 + 3 + 9 + 1 + 1


def test_a_file_that_no_detector_can_take_is_refused_too(tmp_path: Path) -> None:
    theirs = network(seed=0)
    theirs.conv1 = nn.Conv2d(3, 64, 3, bias=False)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "cifar.pth")
    with pytest.raises(UserError, match=r"checkpoints: cifar: its resnet18 with the cifar stem"):
        plan(pipeline(tmp_path, DETECTION, f"checkpoint={tmp_path / 'cifar.pth'}"), tmp_path)


def test_a_root_holds_wherever_the_jobs_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = plan(pipeline(tmp_path, SMALL, "roots.images=images"), tmp_path)
    stage = graph["pretrain/unigrad_demo-seed0"]
    assert stage.params["recipe"]["data"]["root"] == str(tmp_path / "images")
    assert stage.requires == (tmp_path / "images",)


def test_a_recipe_without_a_root_is_named(tmp_path: Path) -> None:
    bare = SMALL.replace('seeds: [0, 1], overrides: ["data.root=${roots.images}"]', "seeds: [0, 1]")
    with pytest.raises(UserError, match=r"pretrain: unigrad_demo: data\.root is not given"):
        plan(pipeline(tmp_path, bare), tmp_path)


def test_half_way_checkpoints_are_evaluated_while_the_training_goes_on(tmp_path: Path) -> None:
    graph = plan(pipeline(tmp_path, SMALL, "evaluate_every=2"), tmp_path)
    order = list(graph.names)
    half, whole = "pretrain/unigrad_demo-seed0-epoch2", "pretrain/unigrad_demo-seed0"
    assert graph[half].params["until"] == 2
    assert graph[whole].params["start"] == Output(half, "checkpoint.pt")
    evaluated = "evaluate/unigrad_demo-seed0-epoch2/demo_finetune_1percent-seed0"
    assert order.index(evaluated) < order.index(whole), "inline, it would wait for the whole training"
    assert whole not in graph.with_upstream([evaluated])
    assert evaluated in graph["report"].after
    assert not [n for n in order if n.startswith("pretrain/scratch-seed0-")], "nothing is trained there"

    last = SMALL.replace("seeds: [0, 1, 2],", "seeds: [0, 1, 2], intermediate: false,")
    names = plan(pipeline(tmp_path, last, "evaluate_every=2"), tmp_path).names
    assert not [n for n in names if n.startswith("evaluate/") and "epoch" in n]
