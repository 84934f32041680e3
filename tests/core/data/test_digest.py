"""The digest of a data set, read again in the same process."""

import os
from pathlib import Path

import pytest

from carryover.configs.files import sha256_file
from carryover.core.data import digest
from carryover.core.data.digest import Contents, images_below


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three files, older than a file that may still be written."""
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(name.encode() * 50)
    monkeypatch.setattr(digest, "_SETTLED_NS", -1)
    monkeypatch.setattr(digest, "_READ", {})
    return tmp_path


def test_files_that_did_not_change_are_read_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(digest, "sha256_file", counted)
    contents = Contents(images=tuple(images_below(images)))
    first = contents.digest()
    assert sorted(read) == ["a.png", "b.png", "c.png"]
    assert contents.digest() == first
    assert len(read) == 3
    (images / "d.png").write_bytes(b"d" * 50)
    assert Contents(images=tuple(images_below(images))).digest() != first
    assert read[3:] == ["d.png"]


@pytest.mark.parametrize("how", ["in place", "replaced", "exchanged"])
def test_other_bytes_of_the_same_size_and_time_are_another_data_set(images: Path, how: str) -> None:
    contents = Contents(images=tuple(images_below(images)))
    first, path = contents.digest(), images / "b.png"
    before = path.stat()
    if how == "in place":
        path.write_bytes(b"x" * 50)
    elif how == "replaced":
        path.unlink()
        path.write_bytes(b"x" * 50)
    else:
        (images / "c.png").rename(images / "spare")
        path.rename(images / "c.png")
        (images / "spare").rename(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert contents.digest() != first


def test_a_file_that_was_just_written_is_read_again(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_SETTLED_NS", 10**18)
    contents = Contents(images=tuple(images_below(images)))
    contents.digest()
    assert digest._READ == {}
