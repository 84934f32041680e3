"""Options for watching the training of an evaluation besides its loss (torch-free)."""

from pydantic import NonNegativeInt, PositiveInt

from carryover.configs import Section


class WatchConfig(Section):
    """A curve over a training: the task's metric on held-out images, on which nothing is chosen.

    The images are of the split that a recipe chooses on, where it names one, else of its test split. No
    weight and no result depends on it.

    Attributes
    ----------
    times
        Looks in all, evenly over the training, the last one at its end; 0: none.
    images
        At most so many images, evenly by number.
    tensorboard
        Whether the numbers of metrics.jsonl go to TensorBoard as well.
    """

    times: NonNegativeInt = 0
    images: PositiveInt = 200
    tensorboard: bool = False
