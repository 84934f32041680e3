"""The house stands: imports only ever point down."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_imports_only_point_down() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_module_of_ours_is_inside_a_floor() -> None:
    floors = {"configs", "slurm", "core", "pretrain", "transfer", "tests", "benchmarks"}
    stray = set(ROOT.glob("*.py")) | {p for p in ROOT.glob("*/__init__.py") if p.parent.name not in floors}
    assert not stray
