"""Callables for stages in tests: importable by name, as a user's are."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

from carryover.slurm.calls import Call, register


def write(out: Path, text: str = "done") -> None:
    """Write `text` and count the calls, one line each."""
    (out / "result.txt").write_text(text)
    with (out / "calls.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")


def copy(out: Path, source: str, seed: int = 0) -> None:
    """Copy an upstream file; `seed` only tells calls apart."""
    (out / "copy.txt").write_text(Path(source).read_text())


def fail(out: Path) -> None:
    """Fail after having written something."""
    (out / "half.txt").write_text("half")
    raise ValueError("no such color\nsecond line")


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


def never_finish(out: Path) -> None:
    """Be stopped every time."""
    raise SystemExit(128 + signal.SIGUSR2)


def wait_for(out: Path, path: str, seconds: float = 30) -> None:
    """Say that it has begun, and wait until somebody makes `path`; save its state when asked to stop."""
    (out / "begun.txt").write_text(str(os.getpid()))
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda signum, frame: stopped.append(signum))
    end = time.monotonic() + seconds
    while time.monotonic() < end and not Path(path).exists():
        if stopped:
            (out / "state.txt").write_text("saved")
            raise SystemExit(128 + stopped[0])
        time.sleep(0.02)
    write(out)


def meet(out: Path) -> None:
    """Let every process of the job write down how it sees the others."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    (out / f"rank{os.environ['RANK']}.txt").write_text(" ".join(os.environ[name] for name in names))


def tell_gpus(out: Path, n: int) -> None:
    """Write down which GPUs this process may use."""
    (out / "gpus.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
    time.sleep(0.5)


def rendezvous(out: Path, own: str, other: str) -> None:
    """Finish only if the other stage runs at the same time."""
    Path(own).touch()
    end = time.monotonic() + 30
    while not Path(other).exists():
        if time.monotonic() > end:
            raise TimeoutError("the other never came")
        time.sleep(0.02)


def kill_hard(out: Path) -> None:
    """Die as the kernel's out-of-memory killer lets die."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait_deaf(out: Path, path: str) -> None:
    """Wait until somebody makes `path`, hearing no signal but SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    (out / "begun.txt").write_text(str(os.getpid()))
    while not Path(path).exists():
        time.sleep(0.05)
    write(out)


# A run directory that is read back can call only what is registered.
for _name, _value in list(globals().items()):
    if callable(_value) and getattr(_value, "__module__", "") == __name__:
        register(Call(f"{__name__}:{_name}", f"{__name__}:{_name}"))
