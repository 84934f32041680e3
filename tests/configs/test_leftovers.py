"""Failed commands take back what they made, and only that; temporaries of killed writers are found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from carryover.configs.files import atomic_file, temporary_name
from carryover.configs.leftovers import no_empty_folder, remove_abandoned, taken_back

HOST = os.uname().nodename


def contents(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*")}


def fill(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name, encoding="utf-8")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_a_failure_made_is_taken_back_with_the_folders_made_for_it(
    tmp_path: Path, error: type[BaseException]
) -> None:
    new = tmp_path / "a" / "b"
    with pytest.raises(error), taken_back(new, ("claim.json", "holds/*.json")):
        fill(new, "claim.json", "holds/1.json", "holds/deep/2.json")
        (new / "empty").mkdir()
        raise error
    assert contents(tmp_path) == set()


def test_what_was_there_before_stays(tmp_path: Path) -> None:
    fill(tmp_path, "claim.json", "holds/1.json", "note.txt")
    (tmp_path / "empty").mkdir()
    before = contents(tmp_path)
    with pytest.raises(ValueError), taken_back(tmp_path, ("*.json",)):
        fill(tmp_path, "holds/2.json", "more/3.json")
        raise ValueError
    assert contents(tmp_path) == before


def test_work_to_go_on_from_is_kept_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError), taken_back(tmp_path / "new", ("claim.json",)):
        fill(tmp_path / "new", "claim.json", "checkpoint.pt")
        raise ValueError
    assert contents(tmp_path / "new") == {"claim.json", "checkpoint.pt"}
    with taken_back(tmp_path / "done", ("claim.json",)):
        fill(tmp_path / "done", "claim.json")
    assert contents(tmp_path / "done") == {"claim.json"}


def test_a_folder_is_removed_only_if_it_was_made_and_is_empty(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("old", "old/new/deeper", "other"):
        with pytest.raises(ValueError), no_empty_folder(tmp_path / name):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
            if name == "other":
                fill(tmp_path, "other/file")
            raise ValueError
    assert contents(tmp_path) == {"old", "other", "other/file"}


def test_temporaries_of_writers_that_were_killed_are_removed_and_no_others(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom carryover.configs.files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as path:\n"
        "    path.write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    for name in ("checkpoint.pt", "deep/a.b.json"):
        killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / name)])
        assert killed.returncode == -9
    (left,) = tmp_path.glob("*.tmp")
    dead = int(left.name.split(".")[-3])
    fill(
        tmp_path,
        f".x.{HOST}.{os.getppid()}.1-0.tmp",
        f".x.elsewhere.org.{dead}.1-0.tmp",
        ".notes.tmp",
        f"x.{HOST}.{dead}.1-0.tmp",
        f".x.{HOST}.{dead}.tmp",
    )
    kept = contents(tmp_path) - {left.name, f"deep/{next((tmp_path / 'deep').iterdir()).name}"}
    # The number of a process that was killed may be this one's now; a day later nobody writes any more.
    fill(tmp_path, f".x.{HOST}.{os.getpid()}.1-12345678.tmp", f".y.elsewhere.{os.getppid()}.1-0.tmp")
    os.utime(tmp_path / f".y.elsewhere.{os.getppid()}.1-0.tmp", (0, 0))
    temporary_name(tmp_path / "folder").mkdir()
    with atomic_file(tmp_path / "being_written") as being_written:
        remove_abandoned(tmp_path, "x")
        assert left.exists(), "of another file"
        remove_abandoned(tmp_path)
        assert being_written.exists() and not left.exists() and len(list((tmp_path / "deep").iterdir())) == 1
        remove_abandoned(tmp_path, below=True)
        own = {being_written.name, *(p.name for p in tmp_path.glob(".folder.*"))}
        assert contents(tmp_path) - own == kept and len(own) == 2
