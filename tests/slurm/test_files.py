"""JSON files are whole or absent, and only one of many processes creates a given one."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from carryover.configs.files import create_json, read_json, write_json
from carryover.slurm.submission import OpenSubmission, Submission


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "deep/er/file.json"
    write_json(path, {"a": [1, None]})
    write_json(path, {"b": 2})
    assert read_json(path) == {"b": 2}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_missing_file_and_one_emptied_by_a_crash_read_alike(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert read_json(tmp_path / "empty") is None
    assert read_json(tmp_path / "missing") is None
    assert read_json(tmp_path / "empty/below") is None


def test_a_file_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    assert create_json(path, "mine")
    assert not create_json(path, "yours")
    assert read_json(path) == "mine"


def test_an_update_of_a_submission_keeps_the_rest(tmp_path: Path) -> None:
    record = Submission.model_validate(
        {
            "number": 1,
            "token": "t",
            "executor": "slurm",
            "host": "h",
            "pid": 1,
            "process_start": 1,
            "started": "2026-11-20T12:00:00Z",
        }
    )
    held = OpenSubmission(tmp_path / "0001.json", record)
    held.update(jobs={"a": ("1",)})
    held.update(state="done")
    again = Submission.model_validate(read_json(held.path))
    assert (again.token, again.jobs, again.state) == ("t", {"a": ("1",)}, "done")


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    values = [{"n": n, "filler": "x" * 10000} for n in range(20)]

    def read_while_written(n: int) -> bool:
        if n % 2:
            write_json(path.with_name(f"{n}.json"), values[n])
            path.with_name(f"{n}.json").replace(path)
        return read_json(path) in [None, *values]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read_while_written, range(20)))
