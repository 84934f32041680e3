"""What a user meets first, with a checkpoint of somebody else's, files of his own, and no patience."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from carryover.configs import Identity, UserError, load
from carryover.core.backbones.importers import import_checkpoint
from carryover.core.backbones.inspection import inspect_checkpoint
from carryover.core.backbones.pixels import require_same_crops
from carryover.core.data.check import check
from carryover.core.data.shapes.write import write_shapes
from carryover.core.data.workers import cores, loading_processes
from carryover.core.formats.canonical import read_metadata, save_canonical
from carryover.core.formats.claims import FORMAT
from carryover.core.formats.said import Said
from carryover.transfer.cli.commands import convert_checkpoint
from carryover.transfer.cli.run_commands import run_pipeline
from carryover.transfer.convert import TARGETS
from carryover.transfer.pipeline.plan import plan
from carryover.transfer.pipeline.stages import import_foreign
from carryover.transfer.report import write_report
from carryover.transfer.results.record import Metric, write_record
from carryover.transfer.tasks.evaluate import evaluate
from tests.core.backbones.layouts import network
from tests.transfer.convert.backbones import write_backbone
from tests.transfer.records import record
from tests.transfer.report.gathered import gathered
from tests.transfer.tasks.classification.samples import write_images


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 as torchvision's users save it."""
    path = tmp_path_factory.mktemp("foreign") / "theirs.pth"
    torch.save(network(0).state_dict(), path)
    return path


def test_relative_paths_in_a_file_mean_its_folder_and_recipes_by_path_have_names(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = os.path.relpath(foreign, tmp_path / "runs")
    files = {
        "base/seg.yaml": "base: demo_finetune_10percent\ndata: {root: ../images}\n",
        "runs/r/ft.yaml": "base: ../../base/seg.yaml\n",
        "runs/r/same.yaml": "base: ../../base/seg\nlabels: {name: list, list: few.txt}\n",
        "runs/pipe.yaml": f"checkpoints: [{{path: {theirs}, label: mine}}]\n"
        "roots: {here: ../elsewhere}\n"
        "evaluate:\n"
        "- recipe: ./r/ft.yaml\n"
        '- {recipe: r/same.yaml, overrides: ["data.root=../more"]}\n'
        '- {recipe: demo_knn, overrides: ["data.root=${roots.here}"]}\n',
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for folder in (tmp_path, tmp_path / "runs", tmp_path / "base"):
        monkeypatch.chdir(folder)
        stages = plan(load("pipelines", os.path.relpath(tmp_path / "runs/pipe.yaml")), tmp_path / "run")
        roots = {
            stage.params["name"]: stage.params["recipe"]["data"]["root"]
            for stage in stages
            if stage.calls.name == "evaluate"
        }
        assert roots == {
            "ft": str(tmp_path / "images"),
            "same": str(tmp_path / "more"),
            "demo_knn": str(tmp_path / "elsewhere"),
        }
        assert "evaluate/mine/ft-seed0" in stages
        own = load("transfer", os.path.relpath(tmp_path / "runs/r/same.yaml"))
        assert own.labels.list == str(tmp_path / "runs/r/few.txt")
    for name, near in {"./r/ft": "r/ft.yaml", "r/tf.yaml": "r/ft.yaml", "./r/fft.yml": "r/ft.yaml"}.items():
        monkeypatch.chdir(tmp_path / "runs")
        with pytest.raises(UserError) as raised:
            load("transfer", name)
        assert f"did you mean '{near}'?" in str(raised.value) and len(str(raised.value)) < 200
    # What is kept beside a result can be read from anywhere.
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures" / "train", 4, seed=0)
    write_images(tmp_path / "pictures" / "val", 2, seed=1)
    small = ("k=[3]", "image.size=32", "image.resize=32", "precision=fp32", "workers=0")
    state, metadata = import_checkpoint(foreign)
    save_canonical(tmp_path / "mine.safetensors", state, metadata)
    evaluate(
        load("transfer", "demo_knn", ["data.root=pictures", *small]),
        tmp_path / "mine.safetensors",
        Path("out"),
    )
    monkeypatch.chdir(tmp_path / "runs")
    assert load("transfer", "../out/recipe.yaml").data.root == tmp_path / "pictures"


def test_what_is_known_of_a_foreign_file_is_said_once_and_reaches_the_report(
    foreign: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = {"method": "moco", "dataset": "ImageNet", "epochs": 200.0, "input_size": 96}
    import_foreign(tmp_path, str(foreign), "theirs-200", None, said)
    about = read_metadata(tmp_path / "backbone.safetensors")
    assert about.model_dump(include={*said, "label"}) == {**said, "label": "theirs-200"}
    with pytest.raises(UserError, match=r"says itself that its method is unigrad, not byol"):
        import_checkpoint(write_backbone(tmp_path / "ours.safetensors"), said=Said(method="byol"))
    # A size that nobody stated is none to be compared with; one that was stated is.
    recipe = load("transfer", "demo_knn", ["image.size=32", "image.resize=32", f"data.root={tmp_path}"])
    with pytest.raises(UserError, match="was trained on crops of 96"):
        require_same_crops(recipe.image, about, foreign)
    with caplog.at_level(logging.INFO):
        require_same_crops(recipe.image, import_checkpoint(foreign)[1], foreign)
        # Another evaluation of the same file repeats nothing.
        require_same_crops(recipe.image, import_checkpoint(foreign)[1], foreign)
    for sentence in ("crops of 32 px are shown, as image.size says; the 224 px assumed", "assumed: RGB"):
        assert caplog.text.count(sentence) == 1, caplog.text
    # Two files of one maker, with labels: two rows by those names, and no concern.
    imported = {"method": "torchvision", "pretrain_recipe": "imported", "pretrain_seed": None}
    rows = [
        record(50.0 + i, pretrain_label=name, checkpoint_sha256=name[0] * 64, **imported)
        for i, name in enumerate(("after-100", "before-100"))
    ]
    collection = gathered(*rows)
    assert set(collection.labels.values()) == {"after-100", "before-100"}
    for label, near in {"my label": "my-label", "ä b": "b"}.items():
        with pytest.raises(UserError, match="a label is made of letters") as raised:
            load("pipelines", "evaluate_checkpoint", [f"checkpoints=[{{path: x.pth, label: '{label}'}}]"])
        assert f"'{near}' would do" in str(raised.value) and "A-Z" not in str(raised.value)


def test_inspect_is_short_and_convert_says_what_is_left_to_do(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = inspect_checkpoint(foreign)
    assert len(found.report().splitlines()) < 20 < len(found.report(every_tensor=True).splitlines())
    assert "dropped   fc.weight, ... (2 in all)" in found.report()
    target = TARGETS.get("torchvision")
    missing = replace(target, version=lambda: (None, "No module named 'torchvision'"))
    monkeypatch.setattr(TARGETS, "get", lambda name: missing)
    told = convert_checkpoint(foreign, "torchvision", tmp_path / "x.pth", None)
    assert "could not be imported here (No module named 'torchvision')" in told
    assert "convert again where it is installed" in told


def test_data_check_takes_the_folders_that_people_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shapes(tmp_path / "shapes", n_train=10, n_val=10, n_detection=6)
    detection = tmp_path / "shapes/detection"
    assert check("coco", detection) == [], "the demo's own, whose pictures are VOC's"
    for name, content in {
        "captions_train.json": {"images": [], "annotations": [{"caption": "a", "id": 1, "image_id": 1}]},
        "image_info_test-dev.json": {"images": [], "categories": []},
        "panoptic_val.json": {"images": [], "annotations": [{"segments_info": []}], "categories": [{}]},
    }.items():
        (detection / "annotations" / name).write_text(json.dumps(content), encoding="utf-8")
    with caplog.at_level(logging.INFO):
        assert check("coco", detection) == [], "COCO's own folder"
    assert "captions, so not a file of instances; passed over" in caplog.text
    write_images(tmp_path / "folder" / "train", 2, seed=0)
    write_images(tmp_path / "folder" / "validation", 1, seed=1)
    (tmp_path / "folder/validation/ant/broken.jpg").write_bytes(b"no picture")
    assert [d.kind for d in check("imagefolder", tmp_path / "folder")] == ["unreadable_image"]


def test_a_shortened_schedule_is_answered_once_with_one_that_fits() -> None:
    with pytest.raises(UserError) as raised:
        load("transfer", "voc0712_c4_24k", ["solver.max_iter=20"])
    (line,) = str(raised.value).splitlines()[1:]
    assert "steps [18000, 22000] are not before it; warmup_iters" in line
    fitting = line.partition("these would fit: ")[2].split(" (")[0].split(" ")
    assert fitting == ["solver.steps=[15,18]", "solver.warmup_iters=2"]
    shorter = load("transfer", "voc0712_c4_24k", ["solver.max_iter=20", "solver.ims_per_batch=4", *fitting])
    assert (
        "80 iterations (solver.base_lr 0.02 and solver.max_iter 20 are stated for"
        in shorter.solver.describe()
    )


def test_a_dry_run_opens_the_data_and_says_every_error_at_once(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "good" / "train", 4, seed=0)
    write_images(tmp_path / "good" / "val", 2, seed=1)
    shutil.copytree(tmp_path / "good", tmp_path / "bad")
    (tmp_path / "bad/val/ant").rename(tmp_path / "bad/val/yak")
    write_shapes(tmp_path / "shapes", n_train=10, n_val=10, n_detection=6)
    broken = tmp_path / "shapes/detection/VOC2007/Annotations"
    next(iter(sorted(broken.iterdir()))).write_text("<annotation>", encoding="utf-8")
    (tmp_path / "pipe.yaml").write_text(
        f"checkpoints: [{{path: {foreign}, label: theirs}}]\n"
        "evaluate:\n"
        "- {recipe: demo_knn, seeds: [0, 1], overrides: [data.root=good]}\n"
        "- {recipe: demo_knn, label: renamed, seeds: [0, 1], overrides: [data.root=bad]}\n"
        "- {recipe: demo_finetune_10percent, overrides: [data.root=good,"
        ' "labels={name: per_class, images: 9}"]}\n'
        "- {recipe: demo_faster_fpn, overrides: [data.root=shapes/detection]}\n"
        "- {recipe: demo_knn, label: later, overrides: [data.root=nowhere]}\n",
        encoding="utf-8",
    )
    run = tmp_path / "run"
    assert run_pipeline(str(tmp_path / "pipe.yaml"), run, "inline", [], dry_run=True) == 2
    said = capsys.readouterr().out
    assert "evaluate/theirs/renamed-seed0 and 1 more: the test split has 1 class that training lacks" in said
    assert "9 images of each class were requested, but 'ant' has 4" in said
    assert "evaluate/theirs/demo_faster_fpn-seed0: " in said and "Annotations/" in said
    assert f"{tmp_path / 'nowhere'}: no such directory" in said
    assert "4 data sets opened: 3 problems" in said and not run.exists()
    only = ["only=[theirs, demo_knn]"]
    assert run_pipeline(str(tmp_path / "pipe.yaml"), run, "inline", only, dry_run=True) == 0
    assert "1 data sets opened: no problems found" in capsys.readouterr().out


def test_another_works_directory_is_refused_by_its_key_before_data_are_read(tmp_path: Path) -> None:
    recipe = load("transfer", "demo_finetune_10percent", [f"data.root={tmp_path / 'gone'}"])
    asked = Identity.of(recipe, kind="finetune", version=type(recipe).version, seed=3)
    FORMAT.write(tmp_path / "out" / "identity.json", asked.to_json())
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(UserError, match=r"holds another work: seed: 3 -> 0;"):
        evaluate(recipe, tmp_path / "x.safetensors", tmp_path / "out")
    FORMAT.write(tmp_path / "out" / "identity.json", {**asked.to_json(), "seed": 0, "version": 1})
    with pytest.raises(UserError, match="gone: no such folder"):
        # Of an older version that trained alike: what is wrong with the data is found next.
        evaluate(recipe, tmp_path / "x.safetensors", tmp_path / "out")


def test_where_features_are_kept_is_said_and_can_be_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / "data" / split, 3, seed=0)
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    theirs.mkdir()
    checkpoint = write_backbone(theirs / "backbone.safetensors")
    keys = [f"data.root={tmp_path / 'data'}", "data.test_in_train=keep", "image.input_size=any", "k=[2]"]
    with caplog.at_level(logging.INFO):
        evaluate(load("transfer", "demo_knn", [*keys, f"store={mine}"]), checkpoint, tmp_path / "a")
    assert f"stored in {mine} (`store`)" in caplog.text
    assert [p.name for p in theirs.iterdir()] == ["backbone.safetensors"] and any(mine.iterdir())
    with caplog.at_level(logging.INFO):
        evaluate(load("transfer", "demo_knn", keys), checkpoint, tmp_path / "b")
    assert f"stored in {theirs / 'features'} (`store`)" in caplog.text


def test_no_more_processes_load_than_there_are_cores() -> None:
    assert loading_processes(10_000) == cores() and loading_processes(0) == 0


def test_the_report_says_what_is_there_and_nothing_else(tmp_path: Path) -> None:
    per_class = {"labels": {"name": "per_class", "images": 5}, "task": "finetune"}
    few = record(50.0, protocol=per_class, label_fraction=0.016)
    assert set(gathered(few).captions.values()) == {"5 labels per class"}
    temperatures = [(20, 0.07), (20, 0.1), (200, 0.07), (200, 0.1)]
    knn = record(
        task="knn",
        recipe="knn",
        recipe_hash="c" * 64,
        metrics=tuple(Metric(name="top1", params={"k": k, "T": t}, value=40.0, n=9) for k, t in temperatures),
    )
    detection = record(30.0, "AP", task="detection", recipe="voc", recipe_hash="d" * 64, dataset="cells")
    for name, one in {"few": few, "knn": knn, "voc": detection}.items():
        write_record(one, tmp_path / name)
        write_record(one.model_copy(update={"method": "simo"}), tmp_path / f"{name}-simo")
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("k 200, T 0.1</th>") == 1, "all four of k-NN's numbers are in the main table"
    assert "Detection and instance segmentation, cells" in page
    assert "Points are single runs." in page and "the dashed line" not in page
    write_record(few.model_copy(update={"method": "random"}), tmp_path / "few-random")
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Points are single runs; the dashed line is random initialization." in page
