"""`status` says of any directory of ours what it is; the commands on runs refuse others by what they are."""

import subprocess
import sys
from pathlib import Path

import pytest

from carryover.configs import Identity, UserError, load
from carryover.core.formats.claims import FORMAT
from carryover.core.formats.metrics_log import MetricsLog
from carryover.slurm import RequestError
from carryover.transfer.cli.commands import evaluate_checkpoint
from carryover.transfer.cli.run_commands import (
    cancel_run,
    print_logs,
    print_status,
    retry_run,
    run_pipeline,
)
from carryover.transfer.report import write_report
from carryover.transfer.results.record import write_record
from carryover.transfer.tasks.holding import alone_in
from tests.transfer.records import record
from tests.transfer.tasks.classification.samples import write_checkpoint, write_images

Capture = pytest.CaptureFixture[str]


def begin(out: Path, kind: str, recipe: str = "demo_finetune_10percent") -> None:
    """Leave what training leaves half-way: its identity, and twelve of a hundred steps."""
    config = load("pretrain" if kind == "pretrain" else "transfer", recipe, [])
    FORMAT.write(out / "identity.json", Identity.of(config, kind=kind, version=1, seed=3).to_json())
    MetricsLog(out / "metrics.jsonl", total=100).write(12, loss=0.5)


def said(capsys: Capture) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_an_evaluation_says_how_it_ended_and_how_to_go_on(tmp_path: Path, capsys: Capture) -> None:
    write_images(tmp_path / "data" / "train", 4, seed=0)
    write_images(tmp_path / "data" / "val", 2, seed=1)
    checkpoint, out = write_checkpoint(tmp_path / "mine.safetensors"), tmp_path / "out"
    keys = ["k=[3]", "image.size=32", "image.resize=32", "workers=0", f"data.root={tmp_path / 'data'}"]
    evaluate_checkpoint("demo_knn", checkpoint, keys, out, line="carryover evaluate demo_knn --out out")
    capsys.readouterr()
    assert print_status(out) == 0
    first, second, third = said(capsys)
    assert first == f"{out}: an evaluation (knn): demo_knn, seed 0, on shapes val"
    assert (
        second.startswith("finished 20")
        and ": top1 k=3 T=0.07 " in second
        and third.endswith(f"report {out}")
    )
    (out / "result.json").unlink()
    assert print_status(out) == 1
    assert said(capsys)[2] == f"next: carryover evaluate demo_knn --out out (in {Path.cwd()})"


@pytest.mark.parametrize("command", ["evaluate", "pretrain"])
def test_unfinished_work_says_its_last_step_and_who_works_on_it(
    tmp_path: Path, capsys: Capture, command: str
) -> None:
    out = tmp_path / "out"
    kind, recipe = (
        ("pretrain", "unigrad_demo") if command == "pretrain" else ("finetune", "demo_finetune_10percent")
    )
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from carryover.transfer.tasks.holding import alone_in\n"
        "with alone_in(Path(sys.argv[1]), sys.argv[2], 'none', 'carryover again'):\n"
        "    print('held', flush=True)\n    time.sleep(300)\n"
    )
    words = [sys.executable, "-c", program, str(out), command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert print_status(out) == 0
        assert said(capsys)[1].endswith("no step logged yet"), "before it has read its data"
        begin(out, kind, recipe)
        assert print_status(out) == 0
        what = "a pretraining" if command == "pretrain" else "an evaluation (finetune)"
        head, state = said(capsys)
        assert head == f"{out}: {what}, seed 3"
        assert state.startswith(f"at work: process {process.pid} on ") and state.endswith("; step 12 of 100")
        process.kill()
    assert print_status(out) == 1
    _, state, then = said(capsys)
    assert state.startswith("not finished: step 12 of 100; its process is gone") and "carryover again" in then
    with pytest.raises(SystemExit), alone_in(out, command, "none"):
        raise SystemExit("stopped by hand")
    assert print_status(out) == 1
    _, state, then = said(capsys)
    assert state.endswith("; SystemExit: stopped by hand") and "the same --out" in then


def test_a_finished_pretraining_a_report_and_a_folder_of_runs_are_named(
    tmp_path: Path, capsys: Capture
) -> None:
    begin(tmp_path / "pre", "pretrain", "unigrad_demo")
    write_checkpoint(tmp_path / "pre" / "backbone.safetensors")
    write_record(record(), tmp_path / "result")
    write_report([tmp_path / "result"], tmp_path / "page")
    (tmp_path / "pipe.yaml").write_text(
        "checkpoint: pre/backbone.safetensors\nconvert: [canonical]\n", encoding="utf-8"
    )
    run = tmp_path / "runs" / "one"
    assert run_pipeline(str(tmp_path / "pipe.yaml"), run, "inline", []) == 0
    (run / "report").mkdir()
    capsys.readouterr()
    stage = "import/backbone"
    for directory, what, then in (
        ("pre", "a pretraining, seed 3", ""),
        ("page", "a report, written", ""),
        ("runs", f"holds run directories: {run}", f"carryover status {run}"),
        (f"runs/one/stages/{stage}", f"part of stage {stage} of the run {run}", f"logs {run} {stage}"),
        (f"runs/one/stages/{stage}/out", "a canonical checkpoint", f"carryover logs {run} {stage}"),
        ("runs/one/report", f"part of the run {run}", f"carryover status {run}"),
    ):
        assert print_status(tmp_path / directory) == 0
        lines = said(capsys)
        assert lines[0].startswith(f"{tmp_path / directory}: {what}") and lines[-1].endswith(then), lines
    assert print_status(run) == 0 and "2 finished" in capsys.readouterr().out


def test_commands_on_runs_refuse_another_directory_by_what_it_is(tmp_path: Path) -> None:
    begin(tmp_path / "out", "finetune")
    told = r"out: an evaluation \(finetune\), seed 3; not a run directory"
    for call in (
        lambda run: print_logs(run, "train", None),
        lambda run: cancel_run(run, []),
        lambda run: retry_run(run, False),
    ):
        with pytest.raises(UserError, match=told):
            call(tmp_path / "out")
        with pytest.raises(UserError, match="nowhere: no such directory"):
            call(tmp_path / "nowhere")
    for name in ("nowhere", "out/identity.json"):
        with pytest.raises(UserError, match=r"no such directory|a file"):
            print_status(tmp_path / name)
    with pytest.raises(RequestError, match="not a run directory"):
        print_status(tmp_path)
