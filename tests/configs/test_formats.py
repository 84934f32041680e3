"""Files say their version: older ones are migrated, newer ones refused, unknown fields passed over."""

import json
import os
import threading
from pathlib import Path

import pytest

from carryover.configs import Section
from carryover.configs.errors import DamagedFileError, NewerFormatError
from carryover.configs.files import atomic_file, create_json, read_json, write_atomic
from carryover.configs.formats import FileModel, Format, writer

FORMAT = Format(
    "shopping list", 3, {1: lambda p: p | {"items": [p.pop("item")]}, 2: lambda p: p | {"paid": False}}
)


class Inner(Section):
    weight: int


class Shopping(FileModel):
    items: tuple[str, ...]
    paid: bool = True
    inner: Inner | None = None


def test_a_file_says_its_version_and_who_wrote_it(tmp_path: Path) -> None:
    FORMAT.write(tmp_path / "f.json", {"items": []})
    assert json.loads((tmp_path / "f.json").read_text()) == {
        "schema_version": 3,
        "written_by": writer(),
        "items": [],
    }
    assert writer().startswith("carryover ")


@pytest.mark.parametrize("version", [{}, {"schema_version": 1}, {"schema_version": "carryover-shopping-1"}])
def test_older_files_are_migrated_step_by_step(tmp_path: Path, version: dict[str, object]) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps(version | {"item": "milk"}))
    plain = FORMAT.read(path)
    assert plain is not None and FORMAT.parse(Shopping, plain, path) == Shopping(items=("milk",), paid=False)


def test_a_newer_major_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_text(json.dumps({"schema_version": 4, "written_by": "carryover 0.9.1", "items": []}))
    with pytest.raises(
        NewerFormatError, match=r"f\.json: a shopping list of format 4, written by carryover 0\.9\.1"
    ):
        FORMAT.read(path)


def test_unknown_minor_fields_are_passed_over_at_any_depth(tmp_path: Path) -> None:
    plain = {"schema_version": 3, "items": ["milk"], "color": "red", "inner": {"weight": 2, "height": 3}}
    found = FORMAT.parse(Shopping, plain, "f.json")
    assert found == Shopping(items=("milk",), inner=Inner(weight=2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 3, "items": ["mil', "not whole JSON"),
        ("[1, 2]", "expected a shopping list, found list"),
        ('{"schema_version": true}', "schema_version is True"),
        ('{"schema_version": 3, "items": 5}', "not a shopping list: items"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(DamagedFileError, match=message) as raised:
        FORMAT.parse(Shopping, FORMAT.read(path) or {}, path)
    assert str(path) in str(raised.value)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    write_atomic(path, "old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("a full disk")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "f") as temporary:
            temporary.unlink()
            temporary.touch(0o600)
        assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_threads_that_write_one_file_leave_one_of_their_texts(tmp_path: Path) -> None:
    path, texts = tmp_path / "f", [str(n) * 100_000 for n in range(8)]
    threads = [threading.Thread(target=write_atomic, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_a_file_is_created_by_one_alone(tmp_path: Path) -> None:
    assert create_json(tmp_path / "f", 1) and not create_json(tmp_path / "f", 2)
    assert read_json(tmp_path / "f") == 1 and list(tmp_path.iterdir()) == [tmp_path / "f"]


def test_no_file_of_the_product_is_written_in_another_way() -> None:
    root = Path(__file__).parents[2]
    found = []
    for path in (
        p for room in ("configs", "slurm", "pretrain", "transfer") for p in (root / room).rglob("*.py")
    ):
        text = path.read_text(encoding="utf-8")
        if path.name != "files.py" and ".tmp" in text:
            found.append(str(path.relative_to(root)))
    assert found == []
