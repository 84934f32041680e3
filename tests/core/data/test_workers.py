"""Loading processes: the same batches however they are started, and none that outlives its program."""

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from carryover.core.data import workers
from carryover.core.data.config import AugmentConfig, DataConfig, ViewConfig
from carryover.core.data.loader import Loader
from carryover.core.data.prepared import build_dataset
from carryover.core.data.steps import Draw, step_loader
from tests.core.data.folders import image_folder

AUGMENT = AugmentConfig(views="single", view=ViewConfig(size=8, blur=None))


@pytest.fixture(params=["spawn", "forkserver"])
def chosen(request: pytest.FixtureRequest) -> Iterator[str]:
    """A start method that the program chose; "forkserver" is the default of Python 3.14."""
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(None, force=True)


def test_linux_forks_unless_the_program_chose_another_method(monkeypatch: pytest.MonkeyPatch) -> None:
    # Any use of multiprocessing before this test has settled its default.
    multiprocessing.set_start_method(None, force=True)
    monkeypatch.setattr(workers.sys, "platform", "linux")
    assert workers.start_method(2) == "fork" and workers.start_method(0) is None
    monkeypatch.setattr(workers.sys, "platform", "darwin")
    assert workers.start_method(2) is None


@pytest.mark.slow
def test_batches_of_a_training_do_not_depend_on_the_start_method(chosen: str, tmp_path: Path) -> None:
    data = build_dataset(DataConfig(root=image_folder(tmp_path), cache_gib=0))
    assert workers.start_method(1) == chosen
    here, elsewhere = (Loader(data, AUGMENT, 6, seed=3, workers=n) for n in (0, 1))
    for ours, theirs in zip(here.epoch(1), elsewhere.epoch(1), strict=True):
        assert torch.equal(ours.index, theirs.index) and torch.equal(ours.views[0], theirs.views[0])


class _Positions(torch.utils.data.Dataset[tuple[int, int]]):
    def __getitem__(self, draw: Draw) -> tuple[int, int]:
        return draw.index, draw.iteration


@pytest.mark.slow
def test_steps_do_not_depend_on_the_start_method(chosen: str) -> None:
    steps = [[Draw(5, 0, 0), Draw(2, 0, 1)], [Draw(7, 1, 0)]]
    assert list(step_loader(_Positions(), steps, workers=1)) == [[(5, 0), (2, 0)], [(7, 1)]]


@pytest.mark.slow
def test_a_program_that_still_holds_a_loader_ends(tmp_path: Path) -> None:
    image_folder(tmp_path)
    script = f"""
from carryover.core.data.config import AugmentConfig, DataConfig, ViewConfig
from carryover.core.data.loader import Loader
from carryover.core.data.prepared import build_dataset
augment = AugmentConfig(views="single", view=ViewConfig(size=8, blur=None))
loader = Loader(build_dataset(DataConfig(root={str(tmp_path)!r}, cache_gib=0)), augment, 6, seed=0, workers=1)
batches = loader.epoch(0)
next(batches)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
