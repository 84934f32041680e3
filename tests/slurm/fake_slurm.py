"""SLURM's commands as far as submission needs them, acting on files: put in front of PATH by `install`."""

import fcntl
import json
import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from carryover.slurm import cluster_executor, commands

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
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return dict(json.loads(path.read_text())) if path.exists() else {}

    @property
    def calls(self) -> list[str]:
        """Every command that was run, with its arguments."""
        path = self.root / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def updates(self) -> list[str]:
        """What scontrol was told to update, in order."""
        path = self.root / "updates"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def cancelled(self) -> list[str]:
        """The job ids that were cancelled."""
        return [word for call in self.calls if call.startswith("scancel") for word in call.split()[2:]]

    def set_queue(self, queue: dict[str, list[str]]) -> None:
        """Replace the queue."""
        (self.root / "queue.json").write_text(json.dumps(queue))

    def say(self, command: str, text: str) -> None:
        """Make scontrol print `text` when asked about a job."""
        (self.root / f"{command}.says").write_text(text)

    def account(self, *rows: dict[str, object]) -> None:
        """Let sacct know of jobs, by its fields' names; elements of an array as it lists them."""
        (self.root / "sacct.json").write_text(json.dumps(rows))

    def refuse(self, pattern: str, message: str) -> None:
        """Make sbatch refuse scripts in which `pattern` is found, at submission but not at --test-only."""
        (self.root / "refuse").write_text(json.dumps([pattern, message, False]))

    def refuse_when_asked(self, pattern: str, message: str) -> None:
        """Make sbatch refuse scripts in which `pattern` is found, at --test-only too."""
        (self.root / "refuse").write_text(json.dumps([pattern, message, True]))

    def break_command(self, command: str, message: str, times: int = 0) -> None:
        """Make a command fail, always or so many times."""
        (self.root / f"{command}.broken").write_text(f"{times}\n{message}")

    def mend(self, command: str) -> None:
        """Let a command that was broken or silenced work again."""
        for kind in ("broken", "silent"):
            (self.root / f"{command}.{kind}").unlink(missing_ok=True)

    def silence(self, command: str) -> None:
        """Make a command print nothing and end well."""
        (self.root / f"{command}.silent").touch()

    def slow_down(self, seconds: float) -> None:
        """Make every command take its time."""
        (self.root / "slow").write_text(str(seconds))

    def move_to(self, cluster: str, private: bool = False) -> None:
        """Let this machine belong to another cluster, whose users see only their own jobs if `private`."""
        text = f"ClusterName = {cluster}\nPrivateData = {'jobs' if private else 'none'}\n"
        (self.root / "config").write_text(text)
        (self.root / "slurm.conf").write_text(text)

    def take_without_answer(self, number: int, message: str) -> None:
        """Make sbatch fail after its `number`-th job was taken."""
        (self.root / "unheard").write_text(f"{number}\n{message}")

    def refuse_updates(self, pattern: str, message: str, times: int = 0) -> None:
        """Make scontrol refuse updates in which `pattern` is found, always or so many times."""
        (self.root / "refuse_updates").write_text(json.dumps([pattern, message, times]))

    def kill_submitter_at_update(self) -> None:
        """Make scontrol kill whoever calls it after its updates."""
        (self.root / "kill_at_update").touch()

    def kill_submitter_at(self, number: int) -> None:
        """Make sbatch kill whoever calls it right after accepting its `number`-th job."""
        (self.root / "kill_at").write_text(str(number))


def install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Put the faked commands in front of PATH for this test."""
    text = Path(__file__).read_text()
    imports = "import fcntl, json, os, re, signal, sys, time\nfrom pathlib import Path"
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
    monkeypatch.setenv("SLURM_CONF", str(root / "slurm.conf"))
    monkeypatch.setattr(commands, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(cluster_executor, "_PAUSES", (0.0, 0.0))
    fake = FakeSlurm(root)
    fake.move_to("fake")
    return fake


# --- the commands


def main() -> int:
    root = Path(os.environ["FAKE_SLURM"])
    command = Path(sys.argv[0]).name
    if (root / "slow").exists():
        time.sleep(float((root / "slow").read_text()))
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (root / "calls").open("a") as calls:
            calls.write(" ".join([command, *sys.argv[1:]]) + "\n")
        if (root / "watch").exists():
            names = [name for name in (root / "watch").read_text().split() if name in os.environ]
            with (root / "seen").open("a") as seen:
                seen.write(f"{command} {' '.join(names)}\n")
        broken = root / f"{command}.broken"
        if broken.exists():
            times, _, message = broken.read_text().partition("\n")
            if times == "1":
                broken.unlink()
            elif times != "0":
                broken.write_text(f"{int(times) - 1}\n{message}")
            sys.stderr.write(message + "\n")
            return 1
        if (root / f"{command}.silent").exists():
            return 0
        queue_file = root / "queue.json"
        queue = json.loads(queue_file.read_text()) if queue_file.exists() else {}
        if command == "sbatch":
            return submit(root, queue, queue_file)
        if command == "squeue":
            list_queue(root, queue)
        elif command == "scancel":
            kept = {j: v for j, v in queue.items() if j not in sys.argv and j.split("_")[0] not in sys.argv}
            queue_file.write_text(json.dumps(kept))
        elif sys.argv[1:3] == ["show", "config"]:
            sys.stdout.write((root / "config").read_text())
        elif command == "sacct" and (root / "sacct.json").exists():
            asked = next(w for w in sys.argv if w.startswith("--format=")).partition("=")[2].split(",")
            blank = {"ExitCode": "0:0", "Cluster": "fake", "ElapsedRaw": "0"}
            for row in json.loads((root / "sacct.json").read_text()):
                sys.stdout.write("|".join(str((blank | row).get(name, "")) for name in asked) + "\n")
        elif command == "scontrol" and sys.argv[1] in ("--oneliner", "update"):
            return update(root, queue, queue_file)
        elif command == "scontrol" and sys.argv[1] == "requeue":
            said = root / "scontrol.says"
            if said.exists():
                said.write_text(re.sub(r"JobState=\w+", "JobState=COMPLETING", said.read_text()))
        elif sys.argv[1:] == ["show", "job", "--oneliner"] and not (root / f"{command}.says").exists():
            list_jobs(queue)
        elif (root / f"{command}.says").exists():
            sys.stdout.write((root / f"{command}.says").read_text())
    return 0


def list_queue(root: Path, queue: dict) -> None:
    cluster = (root / "config").read_text().split()[2]
    asked = next(word for word in sys.argv if word.startswith("--Format="))
    columns = [column.split(":") for column in asked.removeprefix("--Format=").split(",")]
    rows = [{name: name for name, _ in columns} | {"JobArrayID": "JOBID"}]
    for job, (state, reason, comment, *more) in queue.items():
        row = {"JobArrayID": job, "State": state, "Reason": reason, "Comment": comment, "Cluster": cluster}
        rows.append(
            row | {"exit_code": "0", "RestartCnt": "0"} | dict(zip(["exit_code", "RestartCnt"], more))
        )
    for row in rows:
        sys.stdout.write("".join(str(row[name])[: int(w)].ljust(int(w)) for name, w in columns) + "\n")


def list_jobs(queue: dict) -> None:
    for job, (state, reason, comment, *_) in queue.items():
        base, _, element = job.partition("_")
        array = f"ArrayJobId={base} ArrayTaskId={element} " if element else ""
        sys.stdout.write(f"JobId={base} {array}JobState={state} Reason={reason} Comment={comment}\n")
    if not queue:
        sys.stdout.write("No jobs in the system\n")


def update(root: Path, queue: dict, queue_file: Path) -> int:
    given = [" ".join(sys.argv[1:])] if sys.argv[1] == "update" else sys.stdin.read().splitlines()
    failed = 0
    for line in given:
        if line.startswith("show job "):
            sys.stdout.write(f"JobId={line.split()[2]} JobState={queue[line.split()[2]][0]}\n")
            continue
        with (root / "updates").open("a") as updates:
            updates.write(line + "\n")
        if (root / "refuse_updates").exists():
            pattern, message, times = json.loads((root / "refuse_updates").read_text())
            if re.search(pattern, line):
                sys.stderr.write(message + "\n")
                failed = 1
                if times == 1:
                    (root / "refuse_updates").unlink()
                elif times:
                    (root / "refuse_updates").write_text(json.dumps([pattern, message, times - 1]))
                continue
        words = dict(word.partition("=")[::2] for word in line.split()[1:])
        base, _, inside = words["JobId"].partition("_")
        first, _, last = inside.strip("[]").partition("-")
        ids = [f"{base}_{i}" for i in range(int(first), int(last or first) + 1)] if inside else None
        for job, row in queue.items():
            if job in ids if ids is not None else job.partition("_")[0] == base:
                row[1] = "Dependency" if "Dependency" in words else "Priority"
    queue_file.write_text(json.dumps(queue))
    if (root / "kill_at_update").exists():
        os.kill(os.getppid(), signal.SIGKILL)
    return failed


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
    reason = "BeginTime" if "--begin" in script else reason
    queue.update({i: ["PENDING", reason, comment] for i in ids})
    queue_file.write_text(json.dumps(queue))
    if (root / "kill_at").exists() and number == int((root / "kill_at").read_text()):
        os.kill(os.getppid(), signal.SIGKILL)
    if (root / "unheard").exists() and (root / "unheard").read_text().startswith(f"{number}\n"):
        sys.stderr.write((root / "unheard").read_text().partition("\n")[2])
        return 1
    sys.stdout.write(f"Submitted batch job {job}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
