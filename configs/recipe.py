"""Base class of recipes: a frozen pydantic model that rejects unknown keys."""

from typing import Annotated, ClassVar, final

from pydantic import BaseModel, ConfigDict


@final
class Incidental:
    """Marks a field that says where or by whom the work is done, not what is done.

    Data roots and worker counts are incidental: two runs that differ only there are the same work, so these
    fields stay out of its identity (`configs.identity`; the seed enters it on its own). Write
    ``root: Annotated[Path, Incidental]``; docs/identity.md lists every field of either kind.
    """


class Section(BaseModel):
    """A part of a recipe. Unknown keys are errors; values cannot be changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


class Recipe(Section):
    """A whole recipe: everything needed to redo a published row.

    Attributes
    ----------
    name
        The recipe's file name without its suffix; filled in by `configs.load`.
    source
        Paper, table and row that the recipe reproduces.
    version
        Version of what the recipe is carried out by (a task, a method): raised whenever the same recipe would
        give another number. Part of the identity of every piece of work.
    trained_since
        The oldest version that trains as this one does, and only tests otherwise: its half-finished trainings
        are resumed. None: only those of this version.
    """

    version: ClassVar[int] = 1
    trained_since: ClassVar[int | None] = None

    def version_of_v1(self, processes: int | None) -> int:
        """Return the version that this recipe's work by carryover 0.1 counts as.

        A class whose version was raised says here what the change did not touch, so that only what it did is
        done again.

        Parameters
        ----------
        processes
            How many worked together; None where that is not known.
        """
        return 1

    name: Annotated[str, Incidental] = ""
    source: Annotated[str, Incidental] = ""
