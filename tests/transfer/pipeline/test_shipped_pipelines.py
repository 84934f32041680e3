"""Every shipped pipeline resolves, plans on faked data roots, and runs what its tables ask for."""

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from carryover.configs import load, recipe_names
from carryover.core.formats.canonical import load_canonical
from carryover.slurm.graph import Graph
from carryover.slurm.ledger import Ledger
from carryover.slurm.outputs import describe_outputs
from carryover.slurm.plan import Action, carry_out, make_plan
from carryover.slurm.preview import preview
from carryover.slurm.resources import Cluster
from carryover.transfer.cli.run_commands import _in_short
from carryover.transfer.pipeline.config import PipelineConfig
from carryover.transfer.pipeline.plan import plan
from carryover.transfer.pipeline.stages import import_foreign
from tests.core.backbones.layouts import LAYOUTS, network

CARRYOVER = str(Path(sys.executable).with_name("carryover"))
PUBLISHED = Path(__file__).parents[3] / "configs" / "published"
PIPELINES = recipe_names("pipelines")
PAPERS = {
    "unigrad_tables_8_11": ("unigrad_table8", "unigrad_table11"),
    "simo_table_9": ("eqco_table9",),
    "sqrtkl_tables_2_4_5": ("sqrtkl_table2", "sqrtkl_table4", "sqrtkl_table5"),
    "msbreg_table_2": ("msbreg_table2",),
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A torchvision ResNet-18 of somebody else's."""
    path = tmp_path_factory.mktemp("theirs") / "resnet18.pth"
    torch.save(network(seed=0).state_dict(), path)
    return path


def planned(name: str, roots: Path, theirs: Path, *overrides: str) -> Graph:
    names = (load("pipelines", name)).roots
    given = [f"roots.{n}={roots / n}" for n, root in names.items() if not root.startswith("shapes:")]
    for n in names:
        (roots / n).mkdir(exist_ok=True)
    if name == "evaluate_checkpoint":
        given.append(f"checkpoint={theirs}")
    config = load("pipelines", name, [*given, *overrides])
    assert isinstance(config, PipelineConfig)
    return plan(config, roots / "run")


def evaluations(graph: Graph) -> dict[str, list[str]]:
    """Return source -> evaluation recipes, with the seeds left out."""
    found: dict[str, list[str]] = {}
    for stage in graph:
        if stage.name.startswith("evaluate/"):
            found.setdefault(stage.name.split("/")[1], []).append(stage.params["recipe"]["source"])
    return found


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_plans_and_no_two_of_its_stages_are_one(
    name: str, tmp_path: Path, theirs: Path
) -> None:
    graph = planned(name, tmp_path, theirs)
    hashes = graph.hashes()
    assert len(set(hashes.values())) == len(graph) > 2
    assert {path.parent for stage in graph for path in stage.requires} <= {tmp_path}
    seen = preview(graph, tmp_path / "run", Cluster())
    assert not seen.missing
    assert sum(len(job.stages) for job in seen.jobs) == len(graph)


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_pipeline_runs_the_recipes_that_its_tables_name(
    name: str, tmp_path: Path, theirs: Path
) -> None:
    named: set[str] = set()
    for table in PAPERS[name]:
        with (PUBLISHED / f"{table}.csv").open(encoding="utf-8") as file:
            named.update(recipe for row in csv.DictReader(file) for recipe in row["recipe"].split())
    config = load("pipelines", name)
    assert named and named <= {entry.recipe for entry in config.evaluate}
    # What is beyond is a column of the table that has no recipe of its own name in the file.
    assert {entry.recipe for entry in config.evaluate} - named <= {"linear_tiny_imagenet"}


def test_table_2_of_unigrad_has_all_its_ten_rows(tmp_path: Path, theirs: Path) -> None:
    rows = [load("pretrain", e.recipe).source for e in load("pipelines", "compare_methods").pretrain]
    assert rows == [f"unigrad_arxiv Table 2 ({row})" for row in "abcdefghij"]
    assert all(
        len(found) == 2 for found in evaluations(planned("compare_methods", tmp_path, theirs)).values()
    )


def test_table_2_of_sqrtkl_has_all_its_eighteen_rows_and_table_4_five_trials(
    tmp_path: Path, theirs: Path
) -> None:
    with (PUBLISHED / "sqrtkl_table2.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "AP"]
    wanted = sorted(
        (r["method"], int(r["pretrain_images"]), int(r["pretrain_epochs"]), r["backbone"]) for r in rows
    )
    config = load("pipelines", "sqrtkl_tables_2_4_5")
    (table2,) = (e for e in config.evaluate if e.label == "table2_voc0712")
    assert sorted(_row(name) for name in table2.of) == wanted

    graph = planned("sqrtkl_tables_2_4_5", tmp_path, theirs)
    trials = [n for n in graph.names if n.startswith("evaluate/sqrtkl_imagenet_r50-seed0/voc")]
    assert len(trials) == 10
    assert not [n for n in graph.names if n.startswith("evaluate/sqrtkl_imagenet_r18") and "voc" in n]


def _row(recipe: str) -> tuple[str, int, int, str]:
    config = load("pretrain", recipe)
    count = 0 if config.method.name == "random" else config.data.subset.count
    method = "moco_v2" if config.method.name == "moco" else config.method.name
    return method, count, config.schedule.epochs, config.backbone.label


def test_brought_checkpoints_stand_beside_the_papers_own(tmp_path: Path, theirs: Path) -> None:
    brought = f"checkpoints=[{{path: {theirs}, label: byol}}]"
    graph = planned("msbreg_table_2", tmp_path, theirs, brought)
    assert set(evaluations(graph)) == {"msbreg_r50_300ep_k4-seed0", "byol"}


@pytest.mark.parametrize("label", ["MoCo v2", "DINO", "UniGrad", "VISSL", "lightly BYOL"])
def test_any_makers_file_can_be_brought(label: str, tmp_path: Path) -> None:
    layout = next(made for made in LAYOUTS if made.label == label)
    content, states = layout.make()
    path = tmp_path / "theirs.pth"
    torch.save(content, path)
    graph = planned("evaluate_checkpoint", tmp_path, path, "only=[voc07_c4]")
    assert evaluations(graph).keys() == {"theirs"}
    stage = graph["import/theirs"]
    import_foreign(tmp_path / "out", **stage.params)
    state, metadata = load_canonical(tmp_path / "out" / "backbone.safetensors")
    wanted = states[layout.default]
    assert metadata.maker == layout.maker
    assert state["layer4.1.conv2.weight"].equal(wanted["layer4.1.conv2.weight"])


def test_pretraining_asks_for_more_nodes_than_a_proof_of_carriage(tmp_path: Path, theirs: Path) -> None:
    graph = planned("unigrad_tables_8_11", tmp_path, theirs)
    asked = {stage.name.split("/")[0]: stage.resources for stage in reversed(list(graph))}
    assert (asked["pretrain"].nodes, asked["pretrain"].gpus_per_node) == (4, 8)
    assert (asked["evaluate"].nodes, asked["evaluate"].tasks_per_node) == (1, 8)
    assert asked["convert"].gpus_per_node == asked["report"].gpus_per_node == 0


def test_a_dry_run_shows_a_cluster_user_the_plan_and_which_roots_to_give(tmp_path: Path) -> None:
    done = _run(tmp_path, "sqrtkl_tables_2_4_5", "--executor", "slurm", "--dry-run")
    assert done.returncode == 0, done.stderr
    said = done.stdout
    for line in ("#SBATCH --gpus-per-node=8", "#SBATCH --ntasks-per-node=8", "#SBATCH --time=1440"):
        assert line in said
    assert "afterok:$" in said and "afterany:$" in said and "GPU-hours" in said
    for root in ("imagenet", "voc", "coco", "tiny_imagenet"):
        assert f"roots.{root}=DIRECTORY" in said
    assert not list(tmp_path.iterdir())


def test_a_run_without_its_roots_says_which_and_submits_nothing(tmp_path: Path) -> None:
    (tmp_path / "imagenet").mkdir()
    done = _run(tmp_path, "simo_table_9", f"roots.imagenet={tmp_path / 'imagenet'}")
    assert done.returncode == 2
    assert "roots.coco=DIRECTORY" in done.stderr and "roots.imagenet" not in done.stderr
    assert not (tmp_path / "runs" / "simo_table_9" / "stages" / "pretrain").exists()


def test_a_pipeline_for_ones_own_file_asks_for_it(tmp_path: Path) -> None:
    done = _run(tmp_path, "evaluate_checkpoint", "--dry-run")
    assert done.returncode == 2 and "checkpoint=FILE" in done.stderr


def _run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words: Sequence[str] = [CARRYOVER, "run", *arguments]
    return subprocess.run(words, cwd=directory, capture_output=True, text=True, timeout=300)


def test_other_workers_do_no_stage_of_a_papers_tables_again(tmp_path: Path, theirs: Path) -> None:
    graph = planned("unigrad_tables_8_11", tmp_path, theirs)
    ledger = Ledger.create(tmp_path / "run")
    decisions = make_plan(graph, ledger, lambda record: "")
    for decision in decisions:
        record = carry_out(decision, ledger)
        for name in decision.stage.leaves:
            (ledger.out(record.name) / name).parent.mkdir(parents=True, exist_ok=True)
            (ledger.out(record.name) / name).write_text("made up")
        ledger.out(record.name).mkdir(parents=True, exist_ok=True)
        outputs = describe_outputs(ledger.out(record.name), decision.stage.leaves)
        ledger.write(record.changed("finished", outputs=outputs))
    ledger.write_pipeline(graph, {d.stage.name: d.hash for d in decisions})

    config = load(
        "pipelines", "unigrad_tables_8_11", [f"roots.{n}={tmp_path / n}" for n in ("imagenet", "voc", "coco")]
    )
    fewer = {
        kind: tuple(
            e.model_copy(update={"overrides": (*e.overrides, "workers=1")}) for e in getattr(config, kind)
        )
        for kind in ("pretrain", "evaluate")
    }
    again = preview(plan(config.model_copy(update=fewer), tmp_path / "run"), tmp_path / "run", Cluster())
    assert len(again.plan) == len(graph) and {d.action for d in again.plan} == {Action.SKIP}
    assert _in_short(again.plan) == f"0 to repeat, {len(graph)} finished"


def test_imports_of_one_file_have_one_digest(tmp_path: Path, theirs: Path) -> None:
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        import_foreign(tmp_path / str(number), checkpoint=str(theirs), label="theirs", encoder=None)
    files = [path.read_bytes() for path in tmp_path.glob("*/backbone.safetensors")]
    assert len(files) == 12 and len(set(files)) == 1
