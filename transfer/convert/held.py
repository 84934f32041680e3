"""Parts of a backbone that a library keeps: the network that it runs, and its tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from carryover.core.backbones.imported import Imported
from carryover.core.formats.receipt import Fate


@dataclass(frozen=True)
class Held:
    """A backbone as a library takes it.

    Attributes
    ----------
    imported
        The network whose features the library's must be; without the tokens that the library does not have.
    tensors
        What the file holds, under the network's own names; values may be folded into each other.
    folded
        Names of tensors that went into others: what they went into.
    notes
        What was done, in sentences.
    rename, rename_back
        The library's name of a tensor, and back, where they are not the target's usual ones.
    """

    imported: Imported
    tensors: Mapping[str, Tensor]
    folded: Mapping[str, str]
    notes: tuple[str, ...] = ()
    rename: Callable[[str], str] | None = None
    rename_back: Callable[[str], str | None] | None = None

    @property
    def fates(self) -> tuple[Fate, ...]:
        """Every tensor's fate, those that were folded with the tensor that holds them now."""
        return tuple(
            replace(f, target=self.folded.get(f.target, f.target)) if f.target is not None else f
            for f in self.imported.fates
        )


def held_whole(imported: Imported) -> Held:
    """Return what a library holds that takes every tensor as it is."""
    return Held(imported, imported.state, {})


def held_under(prefix: str, held: Held) -> Held:
    """Return a backbone whose tensors lie in the file under the network's own names after a prefix."""
    return replace(
        held,
        rename=lambda name: prefix + name,
        rename_back=lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None,
    )


def without(imported: Imported, reasons: Mapping[str, str]) -> tuple[Fate, ...]:
    """Return the fates of a file's tensors where those of these names are dropped for these reasons."""
    return tuple(
        Fate(f.source, "dropped", reason=reasons[f.target]) if f.target and f.target in reasons else f
        for f in imported.fates
    )
