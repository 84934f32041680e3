"""The baselines as methods: supervised pretraining, which sees labels, and none, which sees nothing."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import cross_entropy

from carryover.core.data.prepared import Batch
from carryover.pretrain.heads import Encoder
from carryover.pretrain.method_config import RandomConfig, SupervisedConfig
from carryover.pretrain.methods.base import Method, Moment, Outcome


class Supervised(Method):
    """Cross-entropy on the data set's labels; the online network's head is the classifier."""

    directional = False

    def __init__(self, config: SupervisedConfig, online: Encoder) -> None:
        super().__init__(online)
        self.config = config

    def objective(
        self, embeddings: Sequence[Tensor], targets: Sequence[Tensor], batch: Batch, moment: Moment
    ) -> Outcome:
        assert batch.label is not None
        (logits,) = embeddings
        loss = cross_entropy(logits, batch.label, label_smoothing=self.config.label_smoothing)
        return Outcome(loss, {"accuracy": (logits.argmax(1) == batch.label).float().mean()})


class Untrained(Method):
    """No pretraining: the seed's initialization, exported as it is."""

    def __init__(self, config: RandomConfig, online: Encoder) -> None:
        super().__init__(online)
