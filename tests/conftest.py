"""For all tests: what is skipped where a library is missing, in words; their order; a cache of their own."""

import importlib.util
import os
from collections.abc import Iterator

import pytest

from carryover.core import once

_REMEDIES = {
    "detectron2": "Detectron2 is not importable (put its source tree on PYTHONPATH, or install it)",
    "mmseg": "mmsegmentation is not installed (carryover-eval[mmseg])",
}


def pytest_xdist_auto_num_workers() -> int:
    """Return a worker for each core, and one for the tests that mostly wait for SLURM."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the skips, before any fixture of such a test is made; put the tests that wait for SLURM first.

    One worker then has them all, on one pair of clusters, while the others compute: none is left for the end.
    """
    items.sort(key=lambda item: "slurm_cluster" not in item.nodeid)
    for library, remedy in _REMEDIES.items():
        skip = pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=remedy)
        for item in items:
            if item.get_closest_marker(library):
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache directory out of it."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True)
def _nothing_logged_before() -> None:
    """Let every test see the messages that are logged once per command."""
    once.forget()
