"""Every picture is decoded once before training, and what was found is remembered."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carryover.core.data import decoding
from carryover.core.data.decoding import undecodable
from tests.core.data.folders import draw, truncate


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that are decoded, in a cache of the test's own."""
    seen: list[str] = []
    original = decoding.read_picture

    def noting(path: Path) -> Any:
        seen.append(path.name)
        return original(path)

    monkeypatch.setattr(decoding, "read_picture", noting)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return seen


def three(root: Path) -> list[Path]:
    root.mkdir()
    sound, torn, deep = root / "sound.png", root / "torn.jpg", root / "deep.png"
    draw(sound)
    truncate(draw(torn))
    Image.fromarray(np.full((4, 4), 99, np.uint16)).save(deep)
    return [sound, torn, deep]


def test_what_cannot_be_used_is_told_by_kind_and_tried_once(tmp_path: Path, decoded: list[str]) -> None:
    paths = three(tmp_path / "data")
    first = undecodable(paths, tmp_path / "data", "data")
    assert {path.name: found.kind for path, found in first.items()} == {
        "torn.jpg": "unreadable_image",
        "deep.png": "ambiguous_range",
    }
    assert sorted(decoded) == ["deep.png", "sound.png", "torn.jpg"]
    decoded.clear()
    assert undecodable(paths, tmp_path / "data", "data") == first and decoded == []


def test_a_file_that_changed_or_is_new_is_tried_again(tmp_path: Path, decoded: list[str]) -> None:
    paths = three(tmp_path / "data")
    undecodable(paths[:2], tmp_path / "data", "data")
    decoded.clear()
    draw(paths[1])
    os.utime(paths[1], ns=(1, 1))
    found = undecodable(paths, tmp_path / "data", "data")
    assert sorted(decoded) == ["deep.png", "torn.jpg"] and [p.name for p in found] == ["deep.png"]


@pytest.mark.parametrize("damage", ["torn", "another rule", "no place"])
def test_without_a_memory_everything_is_tried(
    damage: str, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = three(tmp_path / "data")
    undecodable(paths, tmp_path / "data", "data")
    decoded.clear()
    (memory,) = (tmp_path / "cache").rglob("*.json")
    if damage == "torn":
        memory.write_text(memory.read_text()[:40])
    elif damage == "another rule":
        monkeypatch.setattr(decoding, "RULE", 2)
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(undecodable(paths, tmp_path / "data", "data")) == 2 and len(decoded) == 3
