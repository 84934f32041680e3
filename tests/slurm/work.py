"""Callables for stages in tests: importable by name, as a user's are."""

import logging
import os
import signal
import sys
import time
from pathlib import Path


def write(out: Path, text: str = "done") -> None:
    """Write `text` and count the calls, one line each."""
    (out / "result.txt").write_text(text)
    with (out / "calls.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")


def copy(out: Path, source: str) -> None:
    """Copy an upstream file."""
    (out / "copy.txt").write_text(Path(source).read_text())


def fail(out: Path) -> None:
    """Fail after having written something."""
    (out / "half.txt").write_text("half")
    raise ValueError("no such colour\nsecond line")


def fail_unless(out: Path, path: str) -> None:
    """Fail until somebody makes `path`."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing")
    write(out)


def talk(out: Path) -> None:
    """Print, log and draw."""
    sys.stdout.write("printed words\n")
    logging.getLogger("talker").info("logged words")
    sys.stdout.write("\r\x1b[2Kdrawn bar")


def stop_half_way(out: Path, signum: int = signal.SIGUSR2) -> None:
    """Save state and leave as a trainer does that was asked to stop; the second call finishes."""
    if (out / "state.txt").exists():
        (out / "result.txt").write_text("resumed")
        return
    (out / "state.txt").write_text("half")
    raise SystemExit(128 + signum)


def kill_itself(out: Path) -> None:
    """Be asked to stop by somebody, without having arranged for it."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def leave(out: Path, code: int) -> None:
    """Leave the interpreter with an exit status."""
    raise SystemExit(code)


def collect(out: Path, directories: list[str]) -> None:
    """Draw up what there is."""
    found = [d for d in directories if (Path(d) / "result.txt").exists()]
    (out / "report.txt").write_text(str(len(found)))
