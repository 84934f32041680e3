#!/usr/bin/env bash
# timm 1.0.31 (PyPI, with torch): a DINOv3 checkpoint with biases of query and value, loaded into the model without them.
#
# Guess, written down before it was run: `create_model(NAME, pretrained=True, pretrained_cfg_overlay={"file": FILE})`,
#   which loads strictly, raises for tensors that the model has no place for, or drops them where they are zero.
# Seen: the filter of `vit_small_patch16_dinov3` (no biases; the published S to H+ have zeros there) leaves every
#   `qkv.bias` out, whatever its values, before the strict comparison is made. Loading succeeds; the features differ from
#   those of `vit_small_patch16_dinov3_qkvb`, which has the biases, and are the same for a file whose biases are zero.
# So: compare the biases of a DINOv3 of one's own training with zero before choosing the model, or take `_qkvb`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6
cat > "$folder/load.py" <<'PY'
import contextlib
import io
import sys

import timm
import torch

folder, name = sys.argv[1], "vit_small_patch16_dinov3"
torch.manual_seed(0)
whole = timm.create_model(f"{name}_qkvb", num_classes=0)
with torch.no_grad():
    # As large as trained ones: those of a new network are 1e-5, and hide what its blocks compute.
    for key, value in whole.named_parameters():
        if "gamma" in key:
            value.fill_(0.3)


def authors(bias: float) -> dict[str, torch.Tensor]:
    """The names of the authors' code: one bias for query, key (masked, zero) and value, LayerScale as ls1, ls2."""
    found = {"rope_embed.periods": torch.ones(16)}
    for key, value in whole.state_dict().items():
        if key.endswith("v_bias"):
            continue
        if key.endswith("q_bias"):
            drawn = bias * torch.randn(len(value), generator=torch.Generator().manual_seed(len(found)))
            key, value = key.replace("q_bias", "qkv.bias"), torch.cat([drawn, torch.zeros_like(value), drawn])
        key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        found[key.replace("reg_token", "storage_tokens")] = value.clone()
    return found


def features(model: str, bias: float) -> torch.Tensor:
    torch.save(authors(bias), f"{folder}/c.pth")
    overlay = {"file": f"{folder}/c.pth", "num_classes": 0}
    # It prints the error that it caught for every block.
    with contextlib.redirect_stdout(io.StringIO()):
        network = timm.create_model(model, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    with torch.no_grad():
        return network(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))


apart = {bias: float((features(name, bias) - features(f"{name}_qkvb", bias)).abs().max()) for bias in (0.0, 1.0)}
print(f"largest difference of the features: {apart[0.0]:.2g} with biases of zero, {apart[1.0]:.2g} with others")
assert apart[0.0] < 1e-4, "changed: with biases of zero the two models differ"
assert apart[1.0] > 1e-2, "changed: the biases are no longer left out"
PY
"$folder/env/bin/python" "$folder/load.py" "$folder" 2> "$folder/said" || { tail -3 "$folder/said"; exit 1; }
echo "as found: a strict load leaves biases out that are not zero"
