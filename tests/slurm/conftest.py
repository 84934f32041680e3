"""What the tests of the slurm package share."""

from pathlib import Path

import pytest

from tests.slurm import fake_slurm
from tests.slurm.fake_slurm import FakeSlurm


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A faked cluster in front of PATH."""
    return fake_slurm.install(tmp_path / "fake", monkeypatch)
