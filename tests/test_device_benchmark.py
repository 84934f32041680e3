"""benchmarks/device.py runs to the end on a CPU, goes on where it was stopped, and always leaves a table."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import device as program


def _table(out: Path) -> str:
    (path,) = out.glob("device-tiny-*.md")
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_is_measured_once_and_a_stopped_part_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tiny", "--device", "cpu", "--out", str(tmp_path)]
    names = [part.name for part in program.PARTS]
    # No time is left: the table says what is missing.
    options = argparse.Namespace(
        device="cpu", tiny=True, out=tmp_path, minutes=1.0, parts=["knn"], again=False
    )
    rows = program.run_part(program.PARTS[-1], options, 0.05)
    assert [row.measured for row in rows] == [None] and rows[0].result.startswith("stopped after 0")

    with pytest.raises(SystemExit) as first:
        program.main([*arguments, "--parts", "knn"])
    assert first.value.code == 0
    assert "| methods | – | not measured |" in _table(tmp_path)
    with pytest.raises(SystemExit) as second:
        program.main(arguments)
    assert second.value.code == 0, capsys.readouterr().out
    table = _table(tmp_path)
    assert "not measured" not in table and "failed" not in table and "stopped" not in table
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("device-parts/tiny/*.json")}
    assert sorted(found) == sorted(names)
    # On one device two trainings are the same one, and so is one that was interrupted.
    for row in found["methods"] + found["resume"]:
        assert row["measured"] == 0 and row["reached"], row
    for row in found["sqrtkl"] + found["simclr"] + found["features"] + found["knn"]:
        assert row["measured"] > 0 and row["ratio"] > 0, row

    # What is there is not measured again, and a part that breaks is a row of the table.
    def broken(setting: object) -> list[program.Row]:
        raise OSError("no such driver")

    parts = [program.Part("methods", broken, 1), *program.PARTS[1:]]
    monkeypatch.setattr(program, "PARTS", tuple(parts))
    with pytest.raises(SystemExit) as third:
        program.main([*arguments, "--again", "--parts", "methods"])
    assert third.value.code == 1
    assert "| methods | – | failed: OSError: no such driver |" in _table(tmp_path)
