"""Stages that ask for the same and wait for the same share an array; dependencies name whole arrays."""

from pathlib import Path

from carryover.slurm import Graph, Ledger, Resources, Stage
from carryover.slurm.batches import Batch, arrays_of, dependency, make_batches
from carryover.slurm.plan import make_plan
from tests.slurm import work


def batches(run_dir: Path, *stages: Stage, size: int = 100) -> list[Batch]:
    plan = make_plan(Graph(stages), Ledger(run_dir), lambda record: "")
    return make_batches(plan, Resources(), size)


def names(found: list[Batch]) -> list[tuple[str, ...]]:
    return [tuple(stage.name for stage in batch.stages) for batch in found]


def test_a_batch_waits_for_one_set_of_stages(tmp_path: Path) -> None:
    found = batches(
        tmp_path,
        Stage("a", work.write),
        Stage("b", work.write),
        *(Stage(f"a/{i}".replace("/", "-"), work.write, depends_on=("a",)) for i in range(2)),
        *(Stage(f"b-{i}", work.write, depends_on=("b",)) for i in range(2)),
        Stage("both", work.write, depends_on=("a", "b")),
    )
    assert names(found) == [("a", "b"), ("a-0", "a-1"), ("b-0", "b-1"), ("both",)]


def test_a_batch_asks_for_one_kind_of_machine(tmp_path: Path) -> None:
    found = batches(
        tmp_path,
        Stage("a", work.write),
        Stage("b", work.write, resources=Resources(gpus_per_node=1)),
        Stage("c", work.write),
    )
    assert names(found) == [("a", "c"), ("b",)]


def test_batches_follow_all_they_wait_for(tmp_path: Path) -> None:
    gpu = Resources(gpus_per_node=1)
    found = batches(
        tmp_path,
        Stage("root", work.write),
        Stage("one", work.write, depends_on=("root",), resources=gpu),
        Stage("two", work.write, depends_on=("one",)),
        Stage("late", work.write, depends_on=("root",)),
        Stage("end", work.write, after=("late", "two")),
    )
    placed: set[str] = set()
    for batch in found:
        assert placed.issuperset((*batch.needs, *batch.follows))
        placed.update(stage.name for stage in batch.stages)
    assert len(placed) == 5


def test_dependencies_name_an_array_whole_only_when_all_of_it_is_needed(tmp_path: Path) -> None:
    jobs = {"a": ("7_0",), "b": ("7_1",), "c": ("8",), "d": ("9", "10"), "e": ("6_1",)}
    arrays = arrays_of({name: jobs[name] for name in "abcd"})

    def needs(*upstream: str, follows: tuple[str, ...] = (), behind: tuple[str, ...] = ()) -> str | None:
        return dependency(Batch((), Resources(), upstream, follows, behind), jobs, arrays)

    assert needs("a", "b") == "afterok:7"
    assert needs("a") == "afterok:7_0"
    assert needs("b", "c") == "afterok:7_1:8"
    assert needs("d") == "afterok:10"
    assert needs("c", follows=("a", "b")) == "afterok:8,afterany:7"
    assert needs() is None
    assert needs("e") == "afterok:6_1", "of an array submitted earlier others may have failed"
    assert needs("c", behind=("5",)) == "afterok:8,afterany:5"


def test_a_batch_is_named_after_what_its_stages_have_in_common(tmp_path: Path) -> None:
    found = batches(tmp_path, *(Stage(f"evaluate/knn-seed{i}", work.write) for i in (10, 11, 12)))
    assert found[0].name == "evaluate/knn-seed1"
    assert batches(tmp_path, Stage("x", work.write), Stage("y", work.write))[0].name == "x+1"
