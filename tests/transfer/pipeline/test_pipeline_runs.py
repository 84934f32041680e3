"""A whole pipeline, run: half-way checkpoints are judged as they appear, and every result knows its cost."""

from pathlib import Path

import pytest

from carryover.configs import load
from carryover.slurm.executor import Event, InlineExecutor, run_graph
from carryover.transfer.pipeline.plan import plan
from carryover.transfer.results.reading import read_records, to_frame
from tests.transfer import tiny_demo


@pytest.mark.slow
def test_half_way_checkpoints_are_evaluated_before_the_training_ends(tmp_path: Path) -> None:
    told: list[Event] = []
    config = load("pipelines", "demo", [*tiny_demo.OVERRIDES, "evaluate_every=1"])
    result = run_graph(plan(config, tmp_path), InlineExecutor(), tmp_path, on_event=told.append)
    assert result.succeeded

    finished = [event.stage for event in told if event.state == "finished"]
    half_way = "evaluate/unigrad_demo-seed0-epoch1/demo_finetune_10percent-seed1"
    assert finished.index(half_way) < finished.index("pretrain/unigrad_demo-seed0")
    assert not [name for name in finished if "epoch1/demo_faster" in name]

    frame = to_frame(read_records([tmp_path])[0])
    top1 = frame[frame["metric"] == "top1"]
    assert sorted(zip(top1["pretrain_epochs"], top1["seed"], strict=True)) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert top1.groupby("pretrain_epochs")["checkpoint_sha256"].nunique().tolist() == [1, 1]
    assert top1["checkpoint_sha256"].nunique() == 2

    assert set(frame["cost_source"]) == {"clock"} and set(frame["attempts"]) == {1}
    parts = frame.groupby("pretrain_epochs")["pretrain_attempts"].unique()
    assert parts[1.0].tolist() == [1] and parts[2.0].tolist() == [2]
    walls = frame.groupby("pretrain_epochs")["pretrain_wall_seconds"].max()
    assert 0 < walls[1.0] < walls[2.0]
    assert (tmp_path / "report" / "index.html").is_file()
