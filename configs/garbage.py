"""Pauses of Python's search for cyclic garbage, where many objects are made that stay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Spare Python the search for cycles among objects that stay: it looks at all of them again and again.

    Memory without cycles is freed as ever. Also a decorator.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
