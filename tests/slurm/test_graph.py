"""Graphs are checked before anything runs, and a hash says all that determines an output and nothing else."""

from pathlib import Path

import pytest

from carryover.slurm.errors import RequestError
from carryover.slurm.graph import Graph
from carryover.slurm.resources import Resources
from carryover.slurm.stage import Output, Stage
from tests.slurm import work


def stage(name: str, **more: object) -> Stage:
    return Stage(name, work.write, **more)  # type: ignore[arg-type]


def test_order_follows_dependencies_and_otherwise_the_order_given() -> None:
    graph = Graph(
        [stage("report", depends_on=("b", "a")), stage("b"), stage("a", depends_on=("z",)), stage("z")]
    )
    assert graph.names == ("b", "z", "a", "report")


def test_an_output_in_the_parameters_is_a_dependency() -> None:
    reader = Stage("read", work.copy, {"nested": [{"source": Output("write", "result.txt")}]})
    assert reader.upstream == ("write",)
    assert Graph([reader, stage("write")]).names == ("write", "read")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([stage("a"), stage("a")], "two stages are called 'a'"),
        ([stage("a", depends_on=("b",))], "'a' depends on 'b', which is no stage here"),
        ([stage("a", after=("b",))], "'a' depends on 'b'"),
        ([stage("a", depends_on=("b",)), stage("b", depends_on=("a",))], "circle: (a -> b -> a|b -> a -> b)"),
        ([stage("a", depends_on=("a",))], "circle: a -> a"),
        ([stage("../a")], "cannot be a directory"),
        ([stage("a//b")], "cannot be a directory"),
        ([stage("")], "cannot be a directory"),
        ([stage("a b")], "cannot be a directory"),
        ([stage("a" * 300)], "cannot be a directory"),
        ([stage("a"), stage("a/b")], "'a/b' would lie inside stage 'a'"),
    ],
)
def test_a_graph_that_cannot_run_is_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Graph(stages)


def test_parameters_must_be_json() -> None:
    with pytest.raises(RequestError, match=r"stage a: params\.x\[1\]: .*object.* cannot be written as JSON"):
        stage("a", params={"x": [1, object()]})
    with pytest.raises(RequestError, match="nan"):
        stage("a", params={"x": float("nan")})
    with pytest.raises(RequestError, match="'out' is given by the ledger"):
        stage("a", params={"out": "x"})


def test_parameters_look_the_same_to_every_executor() -> None:
    assert stage("a", params={"x": (1, 2), "path": Path("/p")}).params == {"x": [1, 2], "path": "/p"}


def hash_of(*stages: Stage) -> str:
    return Graph(stages).hashes()[stages[-1].name]


def test_hash_changes_with_what_determines_the_output(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("one")
    base = hash_of(stage("a", params={"text": "x"}, inputs=(data,)))
    assert hash_of(stage("a", params={"text": "y"}, inputs=(data,))) != base
    assert hash_of(stage("a", params={"text": "x"}, inputs=(data,), version=2)) != base
    assert hash_of(Stage("a", work.copy, {"text": "x"}, inputs=(data,))) != base
    data.write_text("two")
    assert hash_of(stage("a", params={"text": "x"}, inputs=(data,))) != base


def test_hash_does_not_change_with_what_does_not() -> None:
    base = hash_of(stage("a", params={"text": "x", "n": 1}))
    assert hash_of(stage("b", params={"n": 1, "text": "x"})) == base
    assert hash_of(stage("a", params={"text": "x", "n": 1}, resources=Resources(nodes=4))) == base
    assert hash_of(Stage("a", "tests.slurm.work:write", {"text": "x", "n": 1})) == base


def test_hash_follows_the_upstream_output_not_its_name() -> None:
    def reader(name: str, text: str, path: str = "result.txt") -> str:
        up = stage(name, params={"text": text})
        return hash_of(up, Stage("read", work.copy, {"source": Output(name, path)}))

    assert reader("u", "x") == reader("renamed", "x")
    assert reader("u", "x") != reader("u", "y")
    assert reader("u", "x") != reader("u", "x", "other.txt")


def test_a_missing_input_file_is_named() -> None:
    with pytest.raises(RequestError, match="stage a: input file /no/such/file: No such file"):
        hash_of(stage("a", inputs=(Path("/no/such/file"),)))


def test_graph_survives_json(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("one")
    graph = Graph(
        [
            stage(
                "a", inputs=(data,), resources=Resources(nodes=2, gpus_per_node=8, sbatch={"exclusive": True})
            ),
            Stage("b/c", work.copy, {"source": Output("a", "result.txt")}, after=("a",), version=3),
        ]
    )
    again = Graph.from_json(graph.to_json())
    assert again.hashes() == graph.hashes()
    assert [s.resources for s in again] == [s.resources for s in graph]


def test_resources_take_what_they_leave_open_from_the_defaults() -> None:
    defaults = Resources(partition="gpu", time_min=600, sbatch={"mail-type": "FAIL", "nice": 5})
    own = Resources(time_min=60, sbatch={"nice": 0}).over(defaults)
    assert (own.partition, own.time_limit_min, own.sbatch) == ("gpu", 60, {"mail-type": "FAIL", "nice": 0})
    assert Resources().over(defaults).time_limit_min == 600
    assert Resources(nodes=4, gpus_per_node=8, time_min=90).gpu_hours == 48


def test_wrong_resources_are_refused() -> None:
    with pytest.raises(RequestError, match="nodes must be at least 1, not 0"):
        Resources(nodes=0)
    with pytest.raises(RequestError, match="unknown key 'gpus'"):
        Resources.from_json({"gpus": 8})
