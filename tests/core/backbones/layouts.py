"""Checkpoints laid out as each maker writes them: their names, their nesting, random values.

Every function returns what the maker passes to torch.save, and the backbone's own tensors under
torchvision's names, which an importer has to give back exactly.
"""

import argparse
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """A maker's file: how it is made, who it is recognized as, and the role of every backbone in it."""

    label: str
    make: Callable[[], tuple[Any, dict[str, State]]]
    maker: str
    default: str = "online"


def network(seed: int, depth: int = 18, classes: int = 10) -> nn.Module:
    """A torchvision ResNet whose every tensor, buffers included, has random values of its own."""
    with torch.device("meta"):
        model = {18: resnet18, 50: resnet50}[depth](num_classes=classes)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.fill_(1000 + seed)
            elif name.endswith(
                ("running_var", "bn1.weight", "bn2.weight", "bn3.weight", "downsample.1.weight")
            ):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.ndim == 4:
                fan = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) / fan**0.5)
            else:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


def backbone_of(model: nn.Module) -> State:
    """The tensors of a torchvision ResNet without its classifier."""
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("fc.")}


def prefixed(prefix: str, state: State) -> State:
    """The same tensors, each name behind `prefix`."""
    return {f"{prefix}{name}": value for name, value in state.items()}


def mlp(prefix: str, *sizes: int) -> State:
    """A projection head's tensors."""
    head = nn.Sequential(
        *(
            layer
            for a, b in itertools.pairwise(sizes)
            for layer in (nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())
        )
    )
    return prefixed(prefix, head.state_dict())


def optimizer_of(model: nn.Module) -> dict[str, Any]:
    """An SGD state with momentum buffers, as training checkpoints hold it."""
    parameters = [nn.Parameter(torch.zeros(2, 3))]
    sgd = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    parameters[0].grad = torch.ones(2, 3)
    sgd.step()
    return sgd.state_dict()


def children(model: nn.Module) -> nn.Sequential:
    """An nn.Sequential of a ResNet's children without the classifier, as UniGrad and lightly build it."""
    return nn.Sequential(*list(model.children())[:-1])


def torchvision_classifier() -> tuple[Any, dict[str, State]]:
    model = network(1, depth=50)
    return model.state_dict(), {"online": backbone_of(model)}


def vicreg_release() -> tuple[Any, dict[str, State]]:
    state = backbone_of(network(2))
    return state, {"online": state}


def timm_training() -> tuple[Any, dict[str, State]]:
    model, averaged = network(3), network(4)
    file = {
        "epoch": 7,
        "arch": "resnet18",
        "state_dict": model.state_dict(),
        "optimizer": optimizer_of(model),
        "version": 2,
        "args": argparse.Namespace(lr=0.1, opt="sgd"),
        "state_dict_ema": averaged.state_dict(),
        "metric": 71.5,
    }
    return file, {"online": backbone_of(model), "momentum": backbone_of(averaged)}


def moco_v1() -> tuple[Any, dict[str, State]]:
    query, key = network(5, classes=128), network(6, classes=128)
    state = prefixed("module.encoder_q.", query.state_dict()) | prefixed(
        "module.encoder_k.", key.state_dict()
    )
    state |= {"module.queue": torch.randn(128, 32), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    file = {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": OrderedDict(state),
        "optimizer": optimizer_of(query),
    }
    return file, {"online": backbone_of(query), "momentum": backbone_of(key)}


def moco_v2() -> tuple[Any, dict[str, State]]:
    query, key = backbone_of(network(7)), backbone_of(network(8))
    state = prefixed("module.encoder_q.", query) | mlp("module.encoder_q.fc.", 512, 128)
    state |= prefixed("module.encoder_k.", key) | mlp("module.encoder_k.fc.", 512, 128)
    state |= {"module.queue": torch.randn(128, 32), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 800, "arch": "resnet50", "state_dict": state}, {"online": query, "momentum": key}


def moco_v3() -> tuple[Any, dict[str, State]]:
    base, momentum = backbone_of(network(9)), backbone_of(network(10))
    state = prefixed("module.base_encoder.", base) | mlp("module.base_encoder.fc.", 512, 64, 32)
    state |= prefixed("module.momentum_encoder.", momentum) | mlp("module.momentum_encoder.fc.", 512, 64, 32)
    state |= mlp("module.predictor.", 32, 64, 32)
    file = {
        "epoch": 100,
        "arch": "resnet50",
        "state_dict": state,
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
    }
    return file, {"online": base, "momentum": momentum}


def simsiam() -> tuple[Any, dict[str, State]]:
    encoder = backbone_of(network(11))
    state = prefixed("module.encoder.", encoder) | mlp("module.encoder.fc.", 512, 64, 32)
    state |= mlp("module.predictor.", 32, 16, 32)
    return {"epoch": 100, "arch": "resnet50", "state_dict": state, "optimizer": {}}, {"online": encoder}


def unigrad() -> tuple[Any, dict[str, State]]:
    class SiameseNet(nn.Module):
        """The public code's model: Sequential encoders without fc, projectors of three Sequentials."""

        def __init__(self, online: nn.Module, momentum: nn.Module) -> None:
            super().__init__()
            self.encoder = nn.Sequential(*children(online), nn.Flatten(1))
            self.projector = self._head()
            self.momentum_encoder = nn.Sequential(*children(momentum), nn.Flatten(1))
            self.momentum_projector = self._head()

        @staticmethod
        def _head() -> nn.Sequential:
            first = nn.Sequential(nn.Linear(512, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU())
            return nn.Sequential(first, nn.Sequential(nn.Linear(32, 32)))

    online, momentum = network(12), network(13)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(SiameseNet(online, momentum))
    file = {
        "model": prefixed("module.", synced.state_dict()),
        "optimizer": optimizer_of(online),
        "scaler": {"scale": 65536.0},
        "epoch": 100,
    }
    return file, {"online": backbone_of(online), "momentum": backbone_of(momentum)}


def barlow_twins() -> tuple[Any, dict[str, State]]:
    backbone = backbone_of(network(14))
    state = prefixed("module.backbone.", backbone) | mlp("module.projector.", 512, 64, 64)
    state |= {"module.bn.running_mean": torch.zeros(64), "module.bn.running_var": torch.ones(64)}
    return {"epoch": 300, "model": state, "optimizer": {}}, {"online": backbone}


def swav() -> tuple[Any, dict[str, State]]:
    backbone = backbone_of(network(15))
    state = prefixed("module.", backbone) | mlp("module.projection_head.", 512, 64, 16)
    return state | {"module.prototypes.weight": torch.randn(30, 16)}, {"online": backbone}


def deepcluster_v2() -> tuple[Any, dict[str, State]]:
    backbone = backbone_of(network(16))
    state = prefixed("module.", backbone) | mlp("module.projection_head.", 512, 64, 16)
    state |= {f"module.prototypes.prototypes{i}.weight": torch.randn(30, 16) for i in range(3)}
    return state, {"online": backbone}


def dino() -> tuple[Any, dict[str, State]]:
    student, teacher = backbone_of(network(17)), backbone_of(network(18))
    file = {
        "student": prefixed("module.backbone.", student) | mlp("module.head.mlp.", 512, 64),
        "teacher": prefixed("backbone.", teacher) | mlp("head.mlp.", 512, 64),
        "optimizer": {},
        "epoch": 100,
        "args": argparse.Namespace(arch="resnet50", epochs=100),
        "dino_loss": {"center": torch.zeros(1, 64)},
    }
    return file, {"student": student, "teacher": teacher}


def lightly_byol() -> tuple[Any, dict[str, State]]:
    online, momentum = network(19), network(20)
    state = prefixed("backbone.", children(online).state_dict()) | mlp("projection_head.layers.", 512, 64)
    state |= mlp("prediction_head.layers.", 64, 64)
    state |= prefixed("backbone_momentum.", children(momentum).state_dict())
    state |= mlp("projection_head_momentum.layers.", 512, 64)
    file = {
        "epoch": 10,
        "global_step": 100,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [optimizer_of(online)],
        "lr_schedulers": [],
    }
    return file, {"online": backbone_of(online), "momentum": backbone_of(momentum)}


def solo_learn() -> tuple[Any, dict[str, State]]:
    online, momentum = backbone_of(network(21)), backbone_of(network(22))
    state = prefixed("backbone.", online) | mlp("projector.", 512, 64) | mlp("predictor.", 64, 64)
    state |= {"classifier.weight": torch.randn(10, 512), "classifier.bias": torch.randn(10)}
    state |= prefixed("momentum_backbone.", momentum) | mlp("momentum_projector.", 512, 64)
    file = {
        "epoch": 400,
        "pytorch-lightning_version": "1.6.4",
        "state_dict": state,
        "hyper_parameters": OmegaConf.create({"method": "byol", "optimizer": {"lr": 0.5, "lars": True}}),
    }
    return file, {"online": online, "momentum": momentum}


def byol_pytorch() -> tuple[Any, dict[str, State]]:
    online, target = network(23), network(24)
    state = prefixed("online_encoder.net.", online.state_dict()) | mlp(
        "online_encoder.projector.net.", 512, 64
    )
    state |= prefixed("target_encoder.net.", target.state_dict()) | mlp("online_predictor.net.", 64, 64)
    return {"state_dict": state}, {"online": backbone_of(online), "momentum": backbone_of(target)}


def vissl(inner: str) -> tuple[Any, dict[str, State]]:
    trunk = backbone_of(network(25))
    model = {
        "trunk": prefixed(f"{inner}_feature_blocks.", trunk),
        "heads": prefixed("0.clf.0.", {"weight": torch.randn(128, 512), "bias": torch.randn(128)}),
    }
    file = {
        "phase_idx": 200,
        "iteration": 12345,
        "loss": {"name": "simclr_info_nce_loss"},
        "type": "phase",
        "classy_state_dict": {
            "train": True,
            "phase_idx": 199,
            "base_model": {"model": model},
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}},
            "loss": {"info_criterion": {}},
        },
    }
    return file, {"online": trunk}


def mmselfsup() -> tuple[Any, dict[str, State]]:
    online, momentum = backbone_of(network(26)), backbone_of(network(27))
    state = prefixed("backbone.", online) | mlp("neck.mlp.", 512, 64)
    # MMSelfSup keeps the query encoder twice: as the backbone and inside encoder_q.
    state |= prefixed("encoder_q.0.", online) | mlp("encoder_q.1.mlp.", 512, 64)
    state |= prefixed("encoder_k.0.", momentum) | mlp("encoder_k.1.mlp.", 512, 64)
    state |= {"queue": torch.randn(64, 32), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    file = {"meta": {"epoch": 200, "mmselfsup_version": "0.10.1"}, "state_dict": state, "optimizer": {}}
    return file, {"online": online, "momentum": momentum}


def mmpretrain() -> tuple[Any, dict[str, State]]:
    backbone = backbone_of(network(28))
    state = prefixed("backbone.", backbone) | prefixed("head.fc.", {"weight": torch.randn(10, 512)})
    file = {
        "meta": {"epoch": 100, "iter": 5, "mmpretrain_version": "1.2.0", "seed": np.int64(3)},
        "state_dict": state,
        "message_hub": {"log_scalars": {"loss": np.arange(4, dtype=np.float64)}},
    }
    return file, {"online": backbone}


def mmselfsup_extracted() -> tuple[Any, dict[str, State]]:
    backbone = backbone_of(network(29))
    return {"state_dict": backbone, "author": "OpenMMLab"}, {"online": backbone}


LAYOUTS = (
    Layout("torchvision", torchvision_classifier, "torchvision / timm / VICReg release"),
    Layout("VICReg release", vicreg_release, "torchvision / timm / VICReg release"),
    Layout("timm training", timm_training, "timm"),
    Layout("MoCo v1", moco_v1, "MoCo v1/v2"),
    Layout("MoCo v2", moco_v2, "MoCo v1/v2"),
    Layout("MoCo v3", moco_v3, "MoCo v3"),
    Layout("SimSiam", simsiam, "SimSiam"),
    Layout("UniGrad", unigrad, "UniGrad"),
    Layout("Barlow Twins", barlow_twins, "Barlow Twins / VICReg"),
    Layout("SwAV", swav, "SwAV / DeepCluster v2"),
    Layout("DeepCluster v2", deepcluster_v2, "SwAV / DeepCluster v2"),
    Layout("DINO", dino, "DINO", default="teacher"),
    Layout("lightly BYOL", lightly_byol, "lightly"),
    Layout("solo-learn", solo_learn, "solo-learn"),
    Layout("byol-pytorch", byol_pytorch, "BYOL"),
    Layout("VISSL", lambda: vissl(""), "VISSL"),
    Layout("VISSL, older", lambda: vissl("base_model."), "VISSL"),
    Layout("MMSelfSup", mmselfsup, "MMSelfSup / mmpretrain"),
    Layout("mmpretrain", mmpretrain, "MMSelfSup / mmpretrain"),
    Layout("MMSelfSup, extracted", mmselfsup_extracted, "MMSelfSup / mmpretrain"),
)
