"""The instructions of a processor decide in which arithmetic the demo runs."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from carryover.core import processor
from carryover.core.training import device
from carryover.transfer.cli import run_commands

_AMD = "processor : 0\nmodel name : AMD EPYC\nflags : fpu avx2 avx512_bf16\nprocessor : 1\nflags : fpu\n"


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        (_AMD, "", "AVX-512 bf16"),
        (_AMD, "AVX512_CORE_BF16", "AVX-512 bf16"),
        (_AMD, "avx2", ""),
        (_AMD.replace("avx512_bf16", "amx_bf16 avx512_bf16"), "", "AMX"),
        (_AMD.replace(" avx512_bf16", ""), "", ""),
        ("Features : fp asimd bf16\n", "", "Arm bf16"),
    ],
)
def test_bf16_instructions_are_read_from_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, limit: str, expected: str
) -> None:
    _states(tmp_path, monkeypatch, text)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert processor.bf16_instructions() == expected


def test_a_system_that_states_nothing_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor.sys, "platform", "darwin")
    assert processor.bf16_instructions() is None


def test_emulated_bf16_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device._warn_of_emulation.cache_clear()
    _states(tmp_path, monkeypatch, _AMD.replace(" avx512_bf16", ""))
    with caplog.at_level(logging.WARNING):
        device.bf16_autocast(device.CPU, enabled=False)
        assert not caplog.messages
        for _ in range(2):
            device.bf16_autocast(device.CPU, enabled=True)
    (message,) = caplog.messages
    assert "precision=fp32" in message
    device._warn_of_emulation.cache_clear()


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        (_AMD, [], []),
        (_AMD.replace(" avx512_bf16", ""), ["only=[demo_knn]"], ["precision=fp32", "only=[demo_knn]"]),
        (_AMD.replace(" avx512_bf16", ""), ["precision=bf16"], ["precision=bf16"]),
    ],
)
def test_the_demo_runs_in_the_arithmetic_that_the_processor_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, given: list[str], expected: list[str]
) -> None:
    _states(tmp_path, monkeypatch, text)
    ran: list[Sequence[str]] = []

    def run_pipeline(name: str, run_dir: Path, executor: str, overrides: Sequence[str]) -> int:
        ran.append(overrides)
        return 0

    monkeypatch.setattr(run_commands, "run_pipeline", run_pipeline)
    assert run_commands.run_demo(tmp_path, given) == 0
    assert ran == [expected]


def _states(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    file = folder / "cpuinfo"
    file.write_text(text)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(processor, "_CPUINFO", file)
    monkeypatch.setattr(processor.sys, "platform", "linux")
    processor._stated.cache_clear()
    monkeypatch.setattr(processor, "_stated", processor._stated.__wrapped__)
