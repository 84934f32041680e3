"""Files and features by the makers' own code: their classes, random weights, norms' statistics included.

Every maker is a few lines of Python that run in a process of their own, with the maker's checkouts and
packages first on the path. `make` builds the maker's network and saves a file as the maker does; `completed`
is what the user writes in place of the line `model = ...` of `carryover inspect FILE --reference-script`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Beginnings of both programs: a network's parameters and running statistics as of training; names that the
# makers' code of these years wants and torch and numpy no longer have.
_BEFORE = """
import collections.abc, sys, types, warnings
warnings.simplefilter("ignore")
import numpy, torch, torchvision
numpy.float = float
sys.modules["torch._six"] = types.SimpleNamespace(container_abcs=collections.abc)

def randomized(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parameters = {n: p.data for n, p in model.named_parameters()}
    running = {n: b for n, b in model.named_buffers() if n.rpartition(".")[2].startswith("running_")}
    for name, value in (parameters | running).items():
        if name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
        elif value.ndim in (2, 4):
            value.copy_(torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5)
        else:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.eval()

class Of(torch.nn.Module):
    # What a network's user makes of its answers.
    def __init__(self, call):
        super().__init__()
        self.call = call
    def forward(self, x):
        return self.call(x)

def under(prefix, state):
    return {prefix + n: v for n, v in state.items()}
"""


@dataclass(frozen=True)
class Maker:
    """One maker's file.

    Attributes
    ----------
    checkouts
        Folders below that of the makers' code; what the file's and the features' programs import from.
    make
        Python that writes PATH, a file, or FOLDER, a folder of Hugging Face.
    completed
        Python in place of the line `model = ...` of the printed script; "" where it runs as it is printed.
    told
        Options of `carryover convert`.
    patches
        Python that ends with the last block's map (N, C, h, w) of `x` as `model` gives it without its class
        token: what Detectron2's own ViT computes. Run after `completed`.
    """

    make: str
    completed: str = ""
    checkouts: tuple[str, ...] = ()
    told: Mapping[str, str] = field(default_factory=dict)
    file: str = "theirs.pth"
    patches: str = ""


def _vit(model: str, positions: str = "model.pos_embed[:, 1:]") -> str:
    """Return the patches alone through a transformer of timm's, DINO's or DINOv2's modules."""
    return f"""
tokens = {model}.patch_embed(x) + {positions}
for block in {model}.blocks:
    tokens = block(tokens)
side = int(tokens.shape[1] ** 0.5)
found = tokens.transpose(1, 2).unflatten(2, (side, side))
"""


_TV_HEADLESS = "model.fc = torch.nn.Identity()"
_DINO = """
import vision_transformer
def headless():
    return torch.nn.ModuleDict({"backbone": vision_transformer.vit_small(patch_size=16)})
teacher, student = randomized(headless(), 1), randomized(headless(), 2)
torch.save({"student": under("module.", student.state_dict()), "teacher": teacher.state_dict(), "epoch": 300,
            "args": None}, PATH)
"""
_DINOV2 = """
from dinov2.models.vision_transformer import vit_small
made = dict(patch_size=14, img_size=518, init_values=1e-5, num_register_tokens={registers}, block_chunks=0)
"""
_MAE = """
import functools, models_mae
model = randomized(models_mae.MaskedAutoencoderViT(patch_size=16, embed_dim={width}, depth=12,
    num_heads={heads}, decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16, mlp_ratio=4,
    norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6)))
torch.save({{"model": model.state_dict(), "epoch": 799}}, PATH)
"""
_MAE_OWN = """
import functools, models_vit
model = models_vit.VisionTransformer(patch_size=16, embed_dim={width}, depth=12, num_heads={heads},
    mlp_ratio=4, qkv_bias=True, norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6), num_classes=0)
print(model.load_state_dict(torch.load(PATH)["model"], strict=False).missing_keys)
"""
_HF = """
import transformers
config = transformers.{config}({options})
randomized(transformers.{kind}(config)).save_pretrained(FOLDER)
transformers.{processor}().save_pretrained(FOLDER)
"""
_HF_OWN = """
import transformers
theirs = transformers.{kind}.from_pretrained(PATH, attn_implementation="eager").eval()
model = Of(lambda x: {taken})
"""
_HF_TOKEN = "theirs(pixel_values=x).last_hidden_state[:, 0]"

MAKERS: dict[str, Maker] = {
    "torchvision R-50": Maker(
        "torch.save(randomized(torchvision.models.resnet50()).state_dict(), PATH)",
        f"model = torchvision.models.resnet50(); model.load_state_dict(torch.load(PATH)); {_TV_HEADLESS}",
    ),
    "timm R-50": Maker(
        """
import timm
model = randomized(timm.create_model("resnet50"))
torch.save({"arch": "resnet50", "epoch": 9, "state_dict": model.state_dict()}, PATH)""",
        """
import timm
model = timm.create_model("resnet50", checkpoint_path=PATH)
model.reset_classifier(0)""",
    ),
    "MoCo v2 names (R-50)": Maker(
        """
def encoder(seed):
    model = torchvision.models.resnet50(num_classes=128)
    model.fc = torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.ReLU(), model.fc)
    return randomized(model, seed).state_dict()
state = under("module.encoder_q.", encoder(1)) | under("module.encoder_k.", encoder(2))
state |= {"module.queue": torch.randn(128, 64), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
torch.save({"epoch": 200, "arch": "resnet50", "state_dict": state}, PATH)""",
        f"""
state, place = torch.load(PATH)["state_dict"], "module.encoder_q."
state = {{n[len(place):]: v for n, v in state.items() if n.startswith(place) and ".fc." not in n}}
model = torchvision.models.resnet50()  # main_lincls.py of MoCo
assert set(model.load_state_dict(state, strict=False).missing_keys) == {{"fc.weight", "fc.bias"}}
{_TV_HEADLESS}""",
        told={"encoder": "online"},
    ),
    "MoCo v3 ViT-S": Maker(
        """
import functools, vits, moco.builder
model = randomized(moco.builder.MoCo_ViT(vits.vit_small, 256, 4096, 0.2))
state = under("module.", model.state_dict())
torch.save({"epoch": 300, "arch": "vit_small", "state_dict": state}, PATH)""",
        """
import vits
model = vits.vit_small(num_classes=0)
state, place = torch.load(PATH)["state_dict"], "module.base_encoder."
state = {n[len(place):]: v for n, v in state.items() if n.startswith(place) and ".head." not in n}
assert not model.load_state_dict(state, strict=False).missing_keys""",
        ("moco-v3", "timm-0.4.9"),
        {"encoder": "online"},
        patches=_vit("model"),
    ),
    "DINO ViT-S/16": Maker(
        _DINO,
        """
import vision_transformer
model = vision_transformer.vit_small(patch_size=16)
state = torch.load(PATH, weights_only=False)["teacher"]
model.load_state_dict({n.removeprefix("backbone."): v for n, v in state.items()})""",
        ("dino",),
        patches=_vit("model"),
    ),
    **{
        f"DINOv2 ViT-S/14{', registers' if registers else ''}": Maker(
            _DINOV2.format(registers=registers)
            + """
model = randomized(vit_small(**made))
torch.save(model.state_dict(), PATH)""",
            _DINOV2.format(registers=registers)
            + """
model = vit_small(**made)
model.load_state_dict(torch.load(PATH))""",
            ("dinov2",),
            patches="" if registers else _vit("model"),
        )
        for registers in (0, 4)
    },
    **{
        f"MAE ViT-{letter}/16": Maker(
            _MAE.format(width=width, heads=heads),
            _MAE_OWN.format(width=width, heads=heads),
            ("mae", "timm-0.3.2"),
            patches=_vit("model"),
        )
        for letter, width, heads in (("B", 768, 12), ("S", 384, 6))
    },
    "ConvNeXt-T (authors)": Maker(
        """
import convnext
torch.save({"model": randomized(convnext.convnext_tiny()).state_dict()}, PATH)""",
        """
import convnext
model = convnext.convnext_tiny()
model.load_state_dict(torch.load(PATH)["model"])
model.head = torch.nn.Identity()""",
        ("ConvNeXt/models", "timm-0.3.2"),
    ),
    "torchvision ResNeXt-50": Maker(
        "torch.save(randomized(torchvision.models.resnext50_32x4d()).state_dict(), PATH)",
        f"""
model = torchvision.models.resnext50_32x4d()
model.load_state_dict(torch.load(PATH))
{_TV_HEADLESS}""",
    ),
    "Swin-T (authors)": Maker(
        """
from swin_transformer import SwinTransformer
torch.save({"model": randomized(SwinTransformer()).state_dict()}, PATH)""",
        """
from swin_transformer import SwinTransformer
model = SwinTransformer()
model.load_state_dict(torch.load(PATH)["model"])
model.head = torch.nn.Identity()""",
        ("Swin-Transformer/models", "timm-0.3.2"),
    ),
    "CLIP ViT-B/32 (OpenAI)": Maker(
        """
from model import CLIP, convert_weights
made = randomized(CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12))
convert_weights(made)  # to half precision, as they are published
torch.save(made.state_dict(), PATH)""",
        """
from model import build_model
model = build_model(torch.load(PATH)).float().visual
model.proj = None  # the features before the projection to the words""",
        ("CLIP/clip",),
        {"architecture": "timm/vit_base_patch32_clip_quickgelu_224.openai"},
    ),
    "Detectron2 R-50, config.yaml": Maker(
        """
from pathlib import Path
import detectron2
from detectron2.config import get_cfg
from detectron2.modeling import build_model
recipes = Path(detectron2.__file__).parents[1] / "configs" / "COCO-Detection"
cfg = get_cfg(); cfg.merge_from_file(str(recipes / "faster_rcnn_R_50_FPN_1x.yaml"))
cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
folder = Path(PATH).parent
(folder / "config.yaml").write_text(cfg.dump())
model = randomized(build_model(cfg))
torch.save({"model": model.state_dict(), "iteration": 89999}, PATH)""",
        checkouts=("detectron2",),
        file="model_final.pth",
    ),
    "mm R-50, caffe": Maker(
        """
from mmpretrain.models import ResNet
cfg = '''
model = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=50, style='caffe'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=2048))
data_preprocessor = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
'''
from mmengine.config import Config
from mmpretrain import get_model
model = randomized(get_model(Config.fromstring(cfg, ".py")))
torch.save({"meta": {"cfg": cfg, "epoch": 100}, "state_dict": model.state_dict()}, PATH)""",
        checkouts=("mmpretrain",),
    ),
    "HF ViT-B/16": Maker(
        _HF.format(config="ViTConfig", options="", kind="ViTModel", processor="ViTImageProcessor"),
        _HF_OWN.format(kind="ViTModel", taken=_HF_TOKEN),
        ("transformers",),
        file="folder",
    ),
    "HF DINOv2-S/14": Maker(
        _HF.format(
            config="Dinov2Config",
            options="hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518",
            kind="Dinov2Model",
            processor="BitImageProcessor",
        ),
        _HF_OWN.format(kind="Dinov2Model", taken=_HF_TOKEN),
        ("transformers",),
        file="folder",
    ),
    "HF ConvNeXt-T": Maker(
        _HF.format(
            config="ConvNextConfig", options="", kind="ConvNextModel", processor="ConvNextImageProcessor"
        ),
        _HF_OWN.format(kind="ConvNextModel", taken="theirs(pixel_values=x).pooler_output"),
        ("transformers",),
        file="folder",
    ),
    "HF ResNet-50": Maker(
        _HF.format(config="ResNetConfig", options="", kind="ResNetModel", processor="ConvNextImageProcessor"),
        _HF_OWN.format(kind="ResNetModel", taken="theirs(pixel_values=x).pooler_output.flatten(1)"),
        ("transformers",),
        file="folder",
    ),
    "lightly ResNetGenerator-18": Maker(
        """
from lightly.models import ResNetGenerator
children = list(ResNetGenerator("resnet-18").children())[:-1]
model = randomized(torch.nn.Sequential(*children, torch.nn.AdaptiveAvgPool2d(1)))
torch.save({"state_dict": under("backbone.", model.state_dict()), "epoch": 9}, PATH)""",
        """
from lightly.models import ResNetGenerator
children = list(ResNetGenerator("resnet-18").children())[:-1]
model = torch.nn.Sequential(*children, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
state = torch.load(PATH)["state_dict"]
model.load_state_dict({n.removeprefix("backbone."): v for n, v in state.items()})""",
    ),
    "Barlow Twins' names (R-50)": Maker(
        """
import argparse
from main import BarlowTwins
model = randomized(BarlowTwins(argparse.Namespace(projector="8192-8192-8192", batch_size=2048)))
torch.save({"epoch": 1000, "model": under("module.", model.state_dict())}, PATH)""",
        f"""
state, place = torch.load(PATH)["model"], "module.backbone."
model = torchvision.models.resnet50(); {_TV_HEADLESS}
model.load_state_dict({{n[len(place):]: v for n, v in state.items() if n.startswith(place)}})""",
        ("barlowtwins",),
    ),
}


def missing(maker: Maker, code: Path) -> list[str]:
    """Return the maker's folders that are not there."""
    return [name for name in maker.checkouts if not (code / name).is_dir()]


def make_file(maker: Maker, code: Path, folder: Path) -> Path:
    """Write a maker's file of random weights into a folder, by the maker's own code."""
    path = (folder / maker.file).absolute()
    _run(maker.make, maker, code, path)
    return path


def write_reference(maker: Maker, code: Path, path: Path, script: str) -> Path:
    """Run the script that `inspect` printed, its line `model = ...` completed; return the .npz it wrote."""
    if maker.completed:
        script, lines = re.subn(r"(?m)^model = .*$", lambda _: maker.completed, script)
        assert lines == 1, f"the script has {lines} lines `model = ...`, expected 1"
    _run(script, maker, code, path)
    return path.parent / "reference.npz"


def write_patches(maker: Maker, code: Path, path: Path, mean: object, std: object) -> Path:
    """Write a .npz of the last block's map without class token, by the maker's own modules."""
    rest = f"""
import numpy
model.eval()
images = torch.rand((2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
x = torchvision.transforms.Normalize({mean}, {std})(images)
with torch.no_grad():
{"".join(f"    {line}" + chr(10) for line in maker.patches.strip().splitlines())}
numpy.savez("patches.npz", images=images, found=found)
"""
    rest = rest.replace("SIDE", "518" if "dinov2" in maker.checkouts else "224")
    _run(f"{maker.completed}\n{rest}", maker, code, path)
    return path.parent / "patches.npz"


def _run(program: str, maker: Maker, code: Path, path: Path) -> None:
    places = [*(str((code / name).absolute()) for name in maker.checkouts), os.environ.get("PYTHONPATH", "")]
    before = f"{_BEFORE}\nPATH = {str(path)!r}\nFOLDER = PATH\n"
    folder = path.parent
    done = subprocess.run(
        [sys.executable, "-c", before + program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in places if p)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-1500:])
