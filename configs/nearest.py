"""The valid name that a wrong one was probably meant to be."""

import difflib
from collections.abc import Sequence


def nearest(key: str, valid: Sequence[str]) -> str | None:
    """Return the valid key that `key` was probably meant to be, or None.

    A key that is complete but for its sections (``base_lr`` for ``optimizer.base_lr``) is found as well.
    """
    close = difflib.get_close_matches(key, valid, n=1, cutoff=0.6)
    if close:
        return close[0]
    last = key.rsplit(".", 1)[-1]
    by_last = [v for v in valid if v.rsplit(".", 1)[-1] == last]
    if by_last:
        return min(by_last, key=len)
    lasts = difflib.get_close_matches(last, [v.rsplit(".", 1)[-1] for v in valid], n=1, cutoff=0.75)
    return next((v for v in valid if lasts and v.rsplit(".", 1)[-1] == lasts[0]), None)
