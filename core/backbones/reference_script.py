"""The maker's own code that writes the features which `convert --against` compares with."""

from carryover.core.backbones.inspected import Inspection

_SIZES = "(2, 3, {size}, {size})"
# How each maker's authors build the network that their file is of, as an expression; {path} is the file.
_MODELS = {
    "DINO": "torch.hub.load('facebookresearch/dino:main', '{dino}', pretrained=False)",
    "DINOv2": "torch.hub.load('facebookresearch/dinov2', '{dinov2}', pretrained=False)",
    "MoCo v3": "vits.{moco_v3}(num_classes=0)  # vits.py of facebookresearch/moco-v3",
    "MAE": "models_vit.{mae}(num_classes=0)  # models_vit.py of facebookresearch/mae",
}
# torchvision's classifier of no classes gives no features.
_TORCHVISION = "torchvision.models.{arch}(); model.{head} = torch.nn.Identity()"
_TIMM = "timm.create_model('{arch}', num_classes=0)"


def script_for(found: Inspection) -> str:
    """Return a script that writes reference.npz: images in 0..1 and what the maker's network makes of them.

    Its line `model = ...` is the maker's: complete it where it is a comment. The normalization is left to the
    maker's code as well, so that a wrong order or mean of pixels shows.
    """
    about = found.metadata
    size = about.input_size
    arch = about.backbone.arch.removeprefix("timm/")
    if found.maker == "Detectron2":
        return _DETECTRON2.format(path=found.path)
    if found.maker.startswith("MMSelfSup"):
        return _MM.format(path=found.path, size=size)
    usual = _TIMM if about.backbone.family == "timm" else _TORCHVISION
    # MoCo v3's ResNets are torchvision's.
    plain = found.maker == "MoCo v3" and usual is _TORCHVISION
    letter, patch = arch[4:5], arch.partition("patch")[2].partition("_")[0]
    model = (usual if plain else _MODELS.get(found.maker, usual)).format(
        arch=arch,
        head="fc" if about.backbone.is_resnet else "classifier",
        dino=f"dino_vit{letter}{patch}" if arch.startswith("vit_") else f"dino_{arch}",
        dinov2=f"dinov2_vit{letter}{patch}{'_reg' if 'reg' in arch else ''}",
        mae=arch.removesuffix("_224"),
        moco_v3="_".join(arch.split("_")[:2]),
    )
    return _GENERIC.format(
        path=found.path,
        model=model,
        size=_SIZES.format(size=size),
        mean=about.pixel_mean,
        std=about.pixel_std,
        maker=found.maker,
    )


_GENERIC = """\
# Run in the environment of the maker's code ({maker}); `model` is the maker's network with {path} loaded.
import numpy, timm, torch, torchvision
images = torch.rand({size}, generator=torch.Generator().manual_seed(0))
model = {model}  # then load the file's weights as the maker does
normalized = torchvision.transforms.Normalize({mean}, {std})(images)  # or as the maker does
with torch.no_grad():
    numpy.savez("reference.npz", images=images, pooled=model.eval()(normalized))
"""
_DETECTRON2 = """\
# Run where Detectron2 is, with the configuration that the model was trained by.
import numpy, torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
cfg = get_cfg(); cfg.merge_from_file("config.yaml"); cfg.MODEL.DEVICE = "cpu"
model = build_model(cfg).eval(); DetectionCheckpointer(model).load("{path}")
images = torch.rand((2, 3, 128, 192), generator=torch.Generator().manual_seed(0))
x = 255 * (images if cfg.INPUT.FORMAT == "RGB" else images.flip(1))
maps = getattr(model.backbone, "bottom_up", model.backbone)((x - model.pixel_mean) / model.pixel_std)
names = dict(zip(("res2", "res3", "res4", "res5"), ("layer1", "layer2", "layer3", "layer4")))
numpy.savez("reference.npz", images=images, **{{names[n]: m.detach() for n, m in maps.items() if n in names}})
"""
_MM = """\
# Run where the maker's mm library is, with the configuration that the file holds.
import numpy, torch
from mmengine.config import Config
from mmpretrain import get_model
cfg = Config.fromstring(torch.load("{path}", weights_only=False)["meta"]["cfg"], ".py")
model = get_model(cfg, pretrained="{path}").eval()
images = torch.rand((2, 3, {size}, {size}), generator=torch.Generator().manual_seed(0))
x = model.data_preprocessor({{"inputs": (255 * images.flip(1)).unbind()}})["inputs"]  # mmcv decodes to BGR
maps = model.backbone(x)
numpy.savez("reference.npz", images=images, pooled=maps[-1].mean((2, 3)).detach())
"""
