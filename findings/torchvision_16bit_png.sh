#!/usr/bin/env bash
# torchvision 0.29.1 with torch 2.14.1 and pillow 13.0.0 (PyPI): one 16-bit grey PNG by four documented ways.
#
# Guess, written down before it was run: to_tensor gives numbers from 0 to 1 as for every image, or refuses; all ways agree.
# Seen: to_tensor gives int16, unscaled, and values from 32,768 on are negative (65,535 is -1). v2's to_image with
#   to_dtype(scale=True) gives 0 to 1 (65,535 is 1.0). Opened as RGB by pillow first, as ImageFolder's loader does, everything
#   above 255 is 255: an image of values up to 65,535 is white but for its darkest 0.4 percent. decode_image gives uint16.
# So: microscopy, depth and X-ray images train as noise or as white without a word; say how 16 bits become numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check \
  torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy==2.4.6
cat > "$folder/read.py" <<'PY'
import sys

import numpy
import torch
import torchvision.transforms.functional as v1
import torchvision.transforms.v2.functional as v2
from PIL import Image
from torchvision.io import decode_image

path = f"{sys.argv[1]}/grey.png"
Image.fromarray(numpy.array([[0, 200, 1000, 32767, 32768, 65535]], dtype=numpy.uint16)).save(path)
image = Image.open(path)
ways = {
    "to_tensor": v1.to_tensor(image),
    "to_image, to_dtype": v2.to_dtype(v2.to_image(image), torch.float32, scale=True),
    "opened as RGB, to_tensor": v1.to_tensor(image.convert("RGB"))[0],
    "decode_image": decode_image(path),
}
for name, tensor in ways.items():
    print(f"{name}: {str(tensor.dtype)[6:]} {[round(v, 3) for v in tensor.flatten().tolist()]}")
PY
seen=$("$folder/env/bin/python" -W ignore "$folder/read.py" "$folder")
echo "$seen"
expected="to_tensor: int16 [0, 200, 1000, 32767, -32768, -1]
to_image, to_dtype: float32 [0.0, 0.003, 0.015, 0.5, 0.5, 1.0]
opened as RGB, to_tensor: float32 [0.0, 0.784, 1.0, 1.0, 1.0, 1.0]
decode_image: uint16 [0, 200, 1000, 32767, 32768, 65535]"
[ "$seen" = "$expected" ] || { echo "changed"; exit 1; }
echo "as found: one file, four images"
