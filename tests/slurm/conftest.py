"""What the tests of the slurm package share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import fake_slurm
from tests.slurm.fake_slurm import FakeSlurm


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """What a job sets for torch.distributed must not reach other tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A faked cluster in front of PATH."""
    return fake_slurm.install(tmp_path / "fake", monkeypatch)
