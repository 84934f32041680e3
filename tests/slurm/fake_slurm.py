"""SLURM's commands as far as submission needs them, acting on files: put in front of PATH by `install`."""

import fcntl
import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sacct", "srun")


@dataclass(frozen=True)
class FakeSlurm:
    """Handle on the faked cluster: what was submitted, what is queued, and how it is to misbehave."""

    root: Path

    @property
    def scripts(self) -> list[str]:
        """The batch scripts that were accepted, in order."""
        return [p.read_text() for p in sorted(self.root.glob("job.*"), key=lambda p: int(p.suffix[1:]))]

    @property
    def queue(self) -> dict[str, list[str]]:
        """Job id -> [state, reason, comment]."""
        path = self.root / "queue.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    @property
    def calls(self) -> list[str]:
        """Every command that was run, with its arguments."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def cancelled(self) -> list[str]:
        """The job ids that were cancelled."""
        return [word for call in self.calls if call.startswith("scancel") for word in call.split()[2:]]

    def set_queue(self, queue: dict[str, list[str]]) -> None:
        """Replace the queue."""
        (self.root / "queue.json").write_text(json.dumps(queue))

    def say(self, command: str, text: str) -> None:
        """Make scontrol or sacct print `text`."""
        (self.root / f"{command}.says").write_text(text)

    def refuse(self, pattern: str, message: str) -> None:
        """Make sbatch refuse scripts in which `pattern` is found, at submission but not at --test-only."""
        (self.root / "refuse").write_text(json.dumps([pattern, message, False]))

    def refuse_when_asked(self, pattern: str, message: str) -> None:
        """Make sbatch refuse scripts in which `pattern` is found, at --test-only too."""
        (self.root / "refuse").write_text(json.dumps([pattern, message, True]))

    def break_command(self, command: str, message: str) -> None:
        """Make a command fail."""
        (self.root / f"{command}.broken").write_text(message)

    def kill_submitter_at(self, number: int) -> None:
        """Make sbatch kill whoever calls it right after accepting its `number`-th job."""
        (self.root / "kill_at").write_text(str(number))


def install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Put the faked commands in front of PATH for this test."""
    text = Path(__file__).read_text()
    imports = "import fcntl, json, os, re, signal, sys\nfrom pathlib import Path"
    program = text.rpartition("# --- the commands\n")[2]
    bin_directory, root = directory / "bin", directory / "state"
    bin_directory.mkdir(parents=True)
    root.mkdir()
    for command in COMMANDS:
        path = bin_directory / command
        path.write_text(f"#!{sys.executable} -SE\n{imports}\n{program}")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(root))
    return FakeSlurm(root)


# --- the commands


def main() -> int:
    root = Path(os.environ["FAKE_SLURM"])
    command = Path(sys.argv[0]).name
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (root / "calls").open("a") as calls:
            calls.write(" ".join([command, *sys.argv[1:]]) + "\n")
        broken = root / f"{command}.broken"
        if broken.exists():
            sys.stderr.write(broken.read_text() + "\n")
            return 1
        queue_file = root / "queue.json"
        queue = json.loads(queue_file.read_text()) if queue_file.exists() else {}
        if command == "sbatch":
            return submit(root, queue, queue_file)
        if command == "squeue":
            sys.stdout.writelines(f"{job}|{s}|{r}|{c}\n" for job, (s, r, c) in queue.items())
        elif command == "scancel":
            kept = {j: v for j, v in queue.items() if j not in sys.argv and j.split("_")[0] not in sys.argv}
            queue_file.write_text(json.dumps(kept))
        elif (root / f"{command}.says").exists():
            sys.stdout.write((root / f"{command}.says").read_text())
    return 0


def submit(root: Path, queue: dict, queue_file: Path) -> int:
    script = Path(sys.argv[-1]).read_text()
    asking = "--test-only" in sys.argv
    if (root / "refuse").exists():
        pattern, message, when_asked = json.loads((root / "refuse").read_text())
        if re.search(pattern, script) and (when_asked or not asking):
            sys.stderr.write(f"sbatch: error: {message}\n")
            return 1
    if asking:
        return 0
    number = len(list(root.glob("job.*"))) + 1
    job = str(100 + number)
    (root / f"job.{number}").write_text(script)
    comment = re.search(r"--comment=(\S+)", script).group(1)
    array = re.search(r"--array=0-(\d+)", script)
    ids = [f"{job}_{i}" for i in range(int(array.group(1)) + 1)] if array else [job]
    reason = "Dependency" if "--dependency" in script else "Priority"
    queue.update({i: ["PENDING", reason, comment] for i in ids})
    queue_file.write_text(json.dumps(queue))
    if (root / "kill_at").exists() and number == int((root / "kill_at").read_text()):
        os.kill(os.getppid(), signal.SIGKILL)
    sys.stdout.write(f"Submitted batch job {job}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
