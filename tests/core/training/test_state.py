"""Training states on disks that refuse them."""

from pathlib import Path

import pytest
import torch

from carryover.configs.errors import WorkError
from carryover.core.formats.state import load_state, save_state


def test_a_full_disk_is_an_error_in_words_and_the_state_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_state(path, {"step": 1})

    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WorkError, match=r"checkpoint\.pt: could not be written whole: is the disk full\?"):
        save_state(path, {"step": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    state = load_state(path)
    assert state is not None and state["step"] == 1

    def other(*_: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", other)
    with pytest.raises(RuntimeError, match="something else"):
        save_state(path, {"step": 2})
