"""What a pretraining step consists of: FLOPs, activations, weights, and what the ranks send each other.

    python benchmarks/step_costs.py [--recipes unigrad_r50_100ep ...]

Counted, not timed: each recipe's own model runs on fake tensors, at two batch sizes whose difference is an
image's part. docs/performance.md rests on these numbers. A multiplication and its addition are 2 FLOPs;
torch.utils.flop_counter counts convolutions and matrix products and nothing else. Activations are what
autograd keeps for the backward pass under the recipe's precision, each storage once.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from carryover.configs import load
from carryover.pretrain.config import PretrainConfig
from carryover.pretrain.methods import DataFacts, Method, build_method
from carryover.pretrain.methods.unigrad import UniGrad
from tests.second_device.counting import is_kernel

RECIPES = ("unigrad_r50_100ep", "unigrad_r50_800ep_cutmix", "simo_r50_200ep_k256_a256", "sqrtkl_imagenet_r50")


@dataclass(frozen=True)
class Pass:
    """One pass over a batch."""

    forward: int  # FLOPs of the trained networks
    backward: int
    target: int  # FLOPs of the target branch
    saved: int  # bytes kept for the backward pass
    operators: int  # of all three

    def __sub__(self, other: "Pass") -> "Pass":
        return Pass(
            self.forward - other.forward,
            self.backward - other.backward,
            self.target - other.target,
            self.saved - other.saved,
            self.operators,
        )


class OperatorCount(TorchDispatchMode):
    """Counts operators that cost a GPU a kernel at least, as the tests' second device does."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += func.namespace == "aten" and is_kernel(func)
        return func(*args, **(kwargs or {}))


def one_pass(config: PretrainConfig, method: Method, batch: int) -> Pass:
    size = config.augment.view.size
    views = [torch.randn(batch, 3, size, size) for _ in config.augment.view_list]
    kept: dict[object, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return x

    with OperatorCount() as counted:
        with saved_tensors_hooks(keep, lambda x: x), FlopCounterMode(display=False) as forward:
            embeddings = method.embed(views)
        with FlopCounterMode(display=False) as backward:
            torch.stack([z.sum() for z in embeddings]).sum().backward()
        with FlopCounterMode(display=False) as target:
            method.targets(views, embeddings)
    flops = [counter.get_total_flops() for counter in (forward, backward, target)]
    return Pass(flops[0], flops[1], flops[2], sum(kept.values()), counted.operators)


def count(modules: nn.Module) -> int:
    return sum(p.numel() for p in modules.parameters())


def row(name: str) -> list[str]:
    config = load("pretrain", name, ["data.root=unread"])
    assert isinstance(config, PretrainConfig)
    method = build_method(config, DataFacts(1024, None)).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        an_image = one_pass(config, method, 4) - one_pass(config, method, 3)
    norms = [m for m in method.online.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    numbers = [
        f"{an_image.forward / 1e9:.2f}",
        f"{an_image.backward / 1e9:.2f}",
        f"{an_image.target / 1e9:.2f}",
        f"{an_image.saved / 1e6:.1f}",
        f"{an_image.operators:,}",
        f"{count(method.online.backbone) / 1e6:.3f}",
        f"{count(method.online.head) / 1e6:.3f}",
        str(len(norms)),
        f"{sum(m.num_features for m in norms):,}",
        f"{method.correlation.shape[0]}²" if isinstance(method, UniGrad) else "",
    ]
    return [name, str(config.batch_size), *numbers]


def lines(recipes: Sequence[str]) -> list[str]:
    heads = ["recipe", "batch", "online forward, GFLOP an image", "backward", "target branch"]
    heads += ["activations, MB an image", "operators a step", "backbone, M weights", "head, M weights"]
    heads += ["batch norms", "channels", "F"]
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *map(row, recipes))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    print("\n".join(lines(parser.parse_args().recipes)))


if __name__ == "__main__":
    main()
