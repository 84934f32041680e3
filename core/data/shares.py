"""A share of annotated images: seeded, nested, every class in proportion (torch-free)."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from carryover.configs import UserError

log = logging.getLogger(__name__)

Counts = NDArray[np.int64]
# How many images that have a class are compared.
_NEXT = 32


def order_by_class(counts: Counts, seed: int) -> list[int]:
    """Order images so that every class is in each beginning of the order in proportion to its objects.

    Each time the class is served of which the smallest share has been taken, of several the rarest, by that
    one of the next images in a random order that has it after which all shares are most alike (after the
    iterative stratification of Sechidis et al. 2011, Sec. 3).

    Parameters
    ----------
    counts
        (N, C) objects, or any weight, of every class in every image. Images of none count as a class.
    seed
        Decides the random order.
    """
    empty = (counts.sum(axis=1, keepdims=True) == 0).astype(np.int64)
    table = np.concatenate([counts, empty], axis=1)
    shuffled = np.random.default_rng(seed).permutation(len(table))
    # The next image of a class stands at the end of its list.
    waiting = [[int(i) for i in shuffled[::-1] if table[i, c]] for c in range(table.shape[1])]
    totals = table.sum(axis=0).astype(np.float64)
    shares_of = table[:, totals > 0] / totals[totals > 0]
    taken = np.zeros(table.shape[1])
    used = np.zeros(len(table), dtype=bool)
    by_rarity = np.argsort(totals, kind="stable")
    order: list[int] = []
    able: list[int] = []
    so_far = np.zeros(shares_of.shape[1])
    while len(order) < len(table):
        shares = np.where(totals > 0, taken / np.maximum(totals, 1), np.inf)
        for c in by_rarity[np.argsort(shares[by_rarity], kind="stable")]:
            able = []
            while waiting[c] and len(able) < _NEXT:
                image = waiting[c].pop()
                if not used[image]:
                    able.append(image)
            waiting[c].extend(reversed(able))
            if able:
                break
        wanted = (len(order) + 1) / len(table)
        image = able[int(np.square(so_far + shares_of[able] - wanted).sum(axis=1).argmin())]
        order.append(image)
        used[image] = True
        so_far = so_far + shares_of[image]
        taken += table[image]
    return order


def take_share(
    counts: Counts, classes: Sequence[str], share: float, seed: int
) -> tuple[list[int], list[str]]:
    """Return the indices of `share` of the images, ascending, and the classes of which none is among them.

    Nested: of one seed, a smaller share's images are among a larger one's. As many as come nearest, and one
    at least. Raises UserError where there are no images.
    """
    if len(counts) == 0:
        raise UserError("label_fraction: there are no training images to take a part of")
    if share == 1:
        return list(range(len(counts))), []
    chosen = sorted(order_by_class(counts, seed)[: max(1, int(np.floor(len(counts) * share + 0.5)))])
    absent = (counts[chosen].sum(axis=0) == 0) & (counts.sum(axis=0) > 0)
    return chosen, [name for name, lacks in zip(classes, absent) if lacks]


def draw_share(counts: Counts, classes: Sequence[str], share: float, seed: int, of_class: str) -> list[int]:
    """Return what `take_share` chooses, and log it: how many images, and the classes that are absent.

    `of_class` is what a class has in an image, as a warning calls it: "object", "pixel".
    """
    chosen, absent = take_share(counts, classes, share, seed)
    what = f"{100 * share:g} % of the training images"
    log.info("%s: %d of %d, drawn by seed %d", what, len(chosen), len(counts), seed)
    if absent:
        log.warning("%s have no %s of %s", what, of_class, ", ".join(absent))
    return chosen
