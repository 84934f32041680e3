"""The command line answers fast, says what is wrong, and leaves with the status that DESIGN promises."""

import errno
import io
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from carryover.configs import recipe_names
from carryover.transfer.cli import commands, doctor, main
from tests.core.backbones.layouts import network
from tests.transfer.tasks.classification.samples import write_images
from tests.transfer.tasks.detection.layouts import write_image, write_voc_xml

CARRYOVER = str(Path(sys.executable).with_name("carryover"))


def carryover(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([CARRYOVER, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["recipes"],
        ["recipes", "unigrad_demo"],
        ["pretrain", "unigrad_demo", "optimzer.base_lr=1"],
        ["evaluate", "demo_finetune_1percent", "--checkpoint", "X", "data.root=/nowhere"],
    ],
    ids=" ".join,
)
def test_help_listing_and_refusals_import_no_torch(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['carryover', *{arguments!r}]\n"
        "from carryover.transfer.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_misspelt_key_is_answered_with_the_nearest(tmp_path: Path) -> None:
    done = carryover("pretrain", "unigrad_demo", "optimzer.base_lr=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "'optimzer'" in done.stderr and "did you mean 'optimizer'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "unigrad_dmo"], "did you mean 'unigrad_demo'"),
        (["evaluate", "demo_finetune_1percent", "-c", "x", "data.root=/nowhere"], "/nowhere"),
        (["inspect", "absent.safetensors"], "absent.safetensors"),
        (["convert", "absent.pth", "--to", "onnx", "--out", "x"], "onnx"),
        (["run", "dmo"], "did you mean 'demo'"),
        (["run", "demo", "--executor", "cloud"], "cloud"),
        (["run", "demo", "--executor", "slurm", "--cluster", "defalt"], "did you mean 'default'"),
        (["status", "absent"], "absent"),
        (["logs", "absent", "report"], "absent"),
        (["cancel", "absent"], "absent"),
        (["retry", "absent"], "absent"),
        (["report", "absent"], "absent"),
        (["data", "check", "imagefolder", "absent"], "absent"),
        (["recipes", "sqrtkl_dem"], "did you mean 'sqrtkl_demo'"),
        (["recipes", "absent.yaml"], "absent.yaml"),
        (["nonsense"], "nonsense"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_what_is_asked_wrongly_leaves_with_two_and_nothing_written(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = carryover(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = carryover("--debug", "pretrain", "unigrad_dmo", cwd=tmp_path)
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_a_resolved_recipe_can_be_run_again_as_a_file(tmp_path: Path) -> None:
    shown = carryover("recipes", "unigrad_demo", "seed=7", cwd=tmp_path)
    (tmp_path / "mine.yaml").write_text(shown.stdout, encoding="utf-8")
    done = carryover("pretrain", "mine.yaml", "method.lam=many", cwd=tmp_path)
    assert done.returncode == 2 and "method.lam" in done.stderr and "unknown" not in done.stderr


def test_a_recipes_title_is_listed_whole(tmp_path: Path) -> None:
    listed = " ".join(carryover("recipes", cwd=tmp_path).stdout.split())
    title = "SiMo, ResNet-50, momentum 0: the key encoder is the query encoder of the step, 100 epochs"
    assert f"simo_r50_100ep_momentum0 {title} (Zhu et al. 2020, Table 6)." in listed
    some = carryover("recipes", "detection", cwd=tmp_path).stdout.splitlines()
    assert "coco_fpn_1x" in {line.split("\t")[1] for line in some}, "plain lines into a pipe"
    assert {line.split("\t")[0] for line in some} == {"detection"}
    small = carryover("recipes", "small", cwd=tmp_path).stdout.splitlines()
    assert len(small) >= 6 and all("small_" in line.split("\t")[1] for line in small)
    paper = carryover("recipes", "--paper", "sqrtkl", "pretrain", cwd=tmp_path).stdout.splitlines()
    assert len(paper) > 5 and all(line.startswith("pretrain\t") for line in paper)


def test_a_terminal_gets_the_groups_of_recipes_with_their_sizes_and_how_to_see_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(commands, "out_console", Console(file=shown, force_terminal=True, width=100))
    commands.print_recipes()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.getvalue()).splitlines()
    assert len(lines) < 30
    sizes = {line.split()[0]: line.split()[1] for line in lines[1:] if line and line.split()[1:2]}
    names = recipe_names("pretrain")
    assert sizes["pretrain"] == str(len(names)) and "detection" in sizes
    assert "`carryover recipes GROUP`" in shown.getvalue() and "--paper sqrtkl" in shown.getvalue()
    shown.truncate(0)
    commands.print_recipes("clusters")
    assert all(name in shown.getvalue() for name in recipe_names("clusters"))


@pytest.mark.parametrize(
    ("base", "command"),
    [
        ("unigrad_demo", "pretrain ./mine.yaml"),
        ("simclr_1percent", "evaluate ./mine.yaml -c CHECKPOINT"),
        ("demo", "run ./mine.yaml"),
    ],
)
def test_a_recipe_of_ones_own_is_shown_like_a_shipped_one(tmp_path: Path, base: str, command: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"# Mine.\nbase: {base}\n", encoding="utf-8")
    own, shipped = (carryover("recipes", name, cwd=tmp_path).stdout for name in ("mine.yaml", base))
    assert own.startswith(f"# carryover {command}\n# Mine.\n")
    assert shipped.startswith(f"# carryover {command.replace('./mine.yaml', base)}\n")
    assert without_story(own) == without_story(shipped) != ""


def without_story(shown: str) -> str:
    return "".join(line for line in shown.splitlines(keepends=True) if not line.startswith("#"))


@pytest.mark.parametrize("option", [(), ("--try",)])
def test_doctor_finds_what_is_indispensable(tmp_path: Path, option: tuple[str, ...]) -> None:
    done = carryover("doctor", *option, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for what in ("torch", "torchvision", "COCO metrics", "Detectron2", "mmsegmentation", "SLURM"):
        assert what in done.stdout


def test_doctor_knows_without_trying_which_versions_do_not_go_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states = {finding.what: finding.state for finding in doctor.examine()}
    tried = {finding.what: finding.state for finding in doctor.examine(tries=True)}
    assert states == tried, "what is installed works here"
    wrong = {"torch": "2.13.0+cpu", "mmsegmentation": "1.2.2", "mmcv-lite": "2.2.0", "mmengine": "0.10.7"}
    own = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: wrong.get(name, "" if name == "mmcv" else own(name)))
    monkeypatch.setattr(doctor, "_DEVICES", ("/dev/null",))
    found = {finding.what: finding for finding in doctor.examine()}
    assert found["torchvision"].state == "broken" and "and torch is 2.13.0+cpu" in found["torchvision"].detail
    assert found["GPU"].state == "broken" and "torch is built for the CPU" in found["GPU"].detail
    if "mmsegmentation" in tried and tried["mmsegmentation"] == "ok":
        assert (
            found["mmsegmentation"].state == "broken"
            and "does not accept this mmcv" in found["mmsegmentation"].detail
        )


def test_planning_and_looking_import_nothing_that_computes(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "train", 6, seed=0)
    write_images(tmp_path / "images" / "val", 3, seed=1)
    torch.save(network(0).state_dict(), tmp_path / "theirs.pth")
    lines = ["checkpoints: [{path: theirs.pth, label: theirs}]", "evaluate:"]
    recipes = {"demo_knn": "", "demo_finetune_10percent": ", labels.fraction=0.5", "demo_tsne": ""}
    lines += [
        f'- {{recipe: {r}, seeds: [0, 1], overrides: ["data.root=images"{o}]}}' for r, o in recipes.items()
    ]
    (tmp_path / "pipe.yaml").write_text("\n".join(lines))
    flat = tmp_path / "cells"
    for i in range(6):
        write_image(flat / f"{i}.jpg", (40, 30 + i))
        write_voc_xml(tmp_path, str(i), [("cell", (2, 3, 20 + i, 20))], (40, 30 + i)).rename(
            flat / f"{i}.xml"
        )
    lines.append('- {recipe: small_detection_cpu, overrides: ["data.root=cells"]}')
    (tmp_path / "pipe.yaml").write_text("\n".join(lines))
    dry = ("run", "pipe.yaml", "--dry-run", "--out", "run")
    # A file that is new is read, with torch; what was found in it is remembered.
    for command in (("inspect", "theirs.pth"), dry):
        first = carryover(*command, cwd=tmp_path)
        assert first.returncode == 0, first.stdout + first.stderr
        again = carryover(*command, cwd=tmp_path)
        assert again.stdout == first.stdout
        # Resources are what SLURM is asked for.
        assert "resources" not in first.stdout and ":00 h" not in first.stdout
    heavy = (
        "torch",
        "torchvision",
        "pandas",
        "sklearn",
        "scipy",
        "timm",
        "matplotlib",
        "pycocotools",
        "mmseg",
    )
    begun = _processor_seconds()
    subprocess.run([sys.executable, "-c", "import torch"], check=True, timeout=60)
    torch_takes = _processor_seconds() - begun
    for command in (
        dry,
        ("inspect", "theirs.pth"),
        ("doctor",),
        ("recipes",),
        ("recipes", "detection"),
        ("--help",),
    ):
        program = (
            "import sys\n"
            f"sys.argv = ['carryover', *{list(command)!r}]\n"
            "from carryover.transfer.cli.main import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
            f"print(sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)\n"
        )
        begun = _processor_seconds()
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == "[]", (command, done.stderr)
        # On an idle machine each takes a third of it.
        assert _processor_seconds() - begun < torch_takes, command
    # Another file of that name is looked into again.
    torch.save({"weight": torch.zeros(2)}, tmp_path / "theirs.pth")
    assert "no ResNet" in carryover("inspect", "theirs.pth", cwd=tmp_path).stderr


def _processor_seconds() -> float:
    """Return the processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "runs/x"),
            1,
            "error: .*Read-only file system.*runs/x",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: .*No space left on device"),
        (SystemExit(130), 130, "interrupted: the same command goes on"),
    ],
    ids=["read-only", "full", "Ctrl-C"],
)
def test_what_the_machine_refuses_is_said_in_a_sentence(
    raised: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def app() -> None:
        raise raised

    monkeypatch.setattr(main, "app", app)
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == status
    assert re.search(said, capsys.readouterr().err)


def test_other_errors_of_the_system_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(main, "app", app)
    with pytest.raises(OSError, match="Input/output error"):
        main.main()
