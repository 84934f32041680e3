#!/usr/bin/env bash
# transformers 5.24.0 and 4.57.6 (PyPI, with torch): ViTMAE saved by one, loaded by the other.
#
# Guess, written down before it was run: a file of `ViTMAEForPreTraining.save_pretrained` has the names of the published
#   checkpoints (facebook/vit-mae-base: `decoder.decoder_layers.N. ...`), so that version 4 loads what version 5 saved.
# Seen: version 5 writes `decoder.decoder_encoder.layer.N. ...`, names that neither it nor version 4 has for a parameter,
#   and reads them back itself. Version 4 finds no layer of the decoder under its names, initializes all of them anew,
#   and says so in a warning only; the reconstructions of one and the same file differ. The encoder is loaded whole.
# So: files of a version-5 ViTMAE are for version 5 where the decoder matters (reconstructions, more pretraining); a reader
#   of the encoder has to leave out `decoder_encoder` too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 5.24.0 4.57.6; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version" torch==2.14.1 numpy==2.4.6
done
cat > "$folder/model.py" <<'PY'
import sys

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining, logging

logging.set_verbosity_error()
logging.disable_progress_bar()
folder, what = sys.argv[1:]
torch.manual_seed(0)
if what == "save":
    from safetensors import safe_open

    config = ViTMAEConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        decoder_hidden_size=16, decoder_num_hidden_layers=2, decoder_num_attention_heads=2, decoder_intermediate_size=32,
    )
    model = ViTMAEForPreTraining(config)
    # Unlike those of a new network, which a wrong load would give as well.
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    model.save_pretrained(folder)
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        names = list(file.keys())
    own = [n for n in names if n.startswith("decoder.decoder_encoder.layer.")]
    usual = [n for n in names if n.startswith("decoder.decoder_layers.")]
    print(f"in the file: {len(own)} names with decoder_encoder.layer, {len(usual)} with decoder_layers")
    assert own and not usual, "changed: the file has the usual names"
    assert not [n for n in model.state_dict() if "decoder_encoder" in n], "changed: the model itself has such names"
model, about = ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
missing = [n for n in about["missing_keys"] if "decoder_layers" in n]
print(f"loaded: {len(missing)} of the decoder's tensors initialized anew")
noise, pixels = torch.linspace(0, 1, 16).expand(1, 16), torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
with torch.no_grad():
    out = model.eval()(pixels, noise=noise)
    encoded = model.vit(pixels, noise=noise).last_hidden_state
print(f"encoder {float(encoded.double().square().mean()):.5f}, loss of the reconstruction {float(out.loss):.5f}")
PY
"$folder/5.24.0/bin/python" "$folder/model.py" "$folder/model" save 2> /dev/null | tee "$folder/new"
"$folder/4.57.6/bin/python" "$folder/model.py" "$folder/model" load 2> /dev/null | tee "$folder/old"
grep -q "^loaded: 0 of" "$folder/new" || { echo "changed: version 5 no longer reads its own file"; exit 1; }
! grep -q "^loaded: 0 of" "$folder/old" || { echo "changed: version 4 reads the file"; exit 1; }
[ "$(grep -o 'encoder [0-9.]*' "$folder/new")" = "$(grep -o 'encoder [0-9.]*' "$folder/old")" ] \
  || { echo "changed: the encoders differ"; exit 1; }
[ "$(grep -o 'reconstruction .*' "$folder/new")" != "$(grep -o 'reconstruction .*' "$folder/old")" ] \
  || { echo "changed: the reconstructions agree"; exit 1; }
echo "as found: the decoder of one file is loaded by one version, and drawn anew by the other"
