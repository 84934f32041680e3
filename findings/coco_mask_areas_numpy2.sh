#!/usr/bin/env bash
# pycocotools 2.0.11 with numpy 2.4.6 (PyPI): the areas of many masks in one call.
#
# Guess, written down before it was run: mask.area takes a list of masks of any length, as mask.iou does.
# Seen: up to 255 masks it answers; 256 raise "OverflowError: Python integer 256 out of bounds for uint8", before anything is
#   measured. mask.iou takes 256 of the same list, hotcoco 1.3.0's mask.area too.
# So: a crowded image, or the masks of several images at once, end a scoring that worked yesterday; ask for areas image by image,
#   in parts of at most 255.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pycocotools==2.0.11 hotcoco==1.3.0 numpy==2.4.6
cat > "$folder/areas.py" <<'PY'
import hotcoco.mask
import numpy
from pycocotools import mask

one = mask.encode(numpy.asfortranarray(numpy.ones((4, 5), dtype=numpy.uint8)))
for count in (255, 256):
    for name, area in (("pycocotools", mask.area), ("hotcoco", hotcoco.mask.area)):
        try:
            print(f"{count} masks: {name} {sorted(set(numpy.asarray(area([one] * count)).tolist()))}")
        except OverflowError as error:
            print(f"{count} masks: {name} OverflowError: {error}")
print("iou of 256 with one:", numpy.asarray(mask.iou([one] * 256, [one], [0])).shape)
PY
seen=$("$folder/env/bin/python" -W ignore "$folder/areas.py")
echo "$seen"
expected="255 masks: pycocotools [20]
255 masks: hotcoco [20]
256 masks: pycocotools OverflowError: Python integer 256 out of bounds for uint8
256 masks: hotcoco [20]
iou of 256 with one: (256, 1)"
[ "$seen" = "$expected" ] || { echo "changed"; exit 1; }
echo "as found: the areas of at most 255 masks in one call"
