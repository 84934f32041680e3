"""Nearest class mean: a test image is given the class whose mean training feature is nearest."""

from typing import ClassVar, Literal

from carryover.transfer.tasks import (
    AllLabels,
    ClassifyData,
    Frozen,
    FrozenRecipe,
    FrozenTask,
    LabeledFacts,
    LabeledImages,
    Labels,
    Metric,
    Outcome,
    Run,
)


class ClassMeanConfig(FrozenRecipe):
    """The recipe: which images, which labels, and in what distance."""

    implementation: ClassVar[str] = "carryover_example.class_mean:ClassMean"

    task: Literal["class_mean"] = "class_mean"
    data: ClassifyData
    labels: Labels = AllLabels()
    distance: Literal["euclidean", "cosine"] = "euclidean"


class ClassMean(FrozenTask[ClassMeanConfig]):
    """Accuracy of the nearest class mean (Mensink et al. 2013)."""

    def test(self, run: Run[ClassMeanConfig, LabeledImages], model: Frozen) -> Outcome:
        """Average the training features of every class, and classify every test image."""
        import torch
        from torch.nn.functional import normalize

        train, test = model.features(run.data.train.images), model.features(run.data.test)
        x, bank = test.pooled, train.pooled
        if run.config.distance == "cosine":
            x, bank = normalize(x, dim=1), normalize(bank, dim=1)
        means = torch.stack([bank[train.labels == c].mean(dim=0) for c in range(len(run.data.classes))])
        right = torch.cdist(x, means).argmin(dim=1) == test.labels
        return Outcome(
            metrics=[Metric(name="top1", value=100 * float(right.double().mean()), n=len(right))],
            train_images=len(train.labels),
            label_fraction=run.data.label_fraction,
            facts=LabeledFacts.of(run),
        )
