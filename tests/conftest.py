"""A test whose mark names a library that is not there is skipped, with the reason in words."""

import importlib.util

import pytest

_REMEDIES = {
    "detectron2": "Detectron2 is not importable (put its source tree on PYTHONPATH, or install it)",
    "mmseg": "mmsegmentation is not installed (carryover-eval[mmseg])",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the skips; before any fixture of such a test is made."""
    for library, remedy in _REMEDIES.items():
        skip = pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=remedy)
        for item in items:
            if item.get_closest_marker(library):
                item.add_marker(skip)
