"""What people see of a long loop: a line now and then where the output is redirected, from one rank only."""

import logging

import pytest

from carryover.core.training.progress import progress


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_redirected_output_gets_a_line_at_the_end_with_the_last_numbers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "carryover.core.training.progress")
    with progress("train", 3) as bar:
        bar.advance(1, loss=2.0)
        bar.advance(1)
        assert _said(caplog) == []
        bar.advance(1, loss=0.12345, place="here")
    (line,) = _said(caplog)
    assert line.startswith("train: 3/3 (")
    assert line.endswith("loss 0.1235  place here")


def test_a_resumed_loop_counts_from_where_it_was_and_its_rate_from_now(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "carryover.core.training.progress")
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("carryover.core.training.progress.time.monotonic", lambda: next(clock))
    with progress("train", 1005, done=1000) as bar:
        bar.advance(5)
    assert _said(caplog) == ["train: 1005/1005 (0.50/s) "]


def test_other_ranks_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "carryover.core.training.progress")
    with progress("train", 1, shown=False) as bar:
        bar.advance(1, loss=1.0)
    assert _said(caplog) == []


def test_a_terminal_gets_a_bar_with_the_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("train", 5, done=4) as bar:
        bar.advance(1, loss=0.5)
    shown = capsys.readouterr().err
    assert "train" in shown
    assert "5/5" in shown
    assert "loss 0.5" in shown
