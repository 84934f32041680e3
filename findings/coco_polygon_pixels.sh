#!/usr/bin/env bash
# supervision 0.31.2 and pycocotools 2.0.11 (PyPI): the pixels of one COCO polygon.
#
# Guess, written down before it was run: a polygon has the same pixels in both, so that a mask IoU does not depend on who
#   rasterised it.
# Seen: two rectangles of 8 x 10, written as one object of two polygons, are 160 pixels in pycocotools and 198 in supervision,
#   which fills a polygon up to and including its last corner, and so makes every part one wider and one higher. Their IoU is
#   0.81. The object's stated area is kept as it is in both.
# So: rasterise truth and prediction with one library; COCO's published numbers are pycocotools'.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check supervision==0.31.2 pycocotools==2.0.11 numpy==2.4.6 pillow==13.0.0
cat > "$folder/compare.py" <<'PY'
import json
import sys
from pathlib import Path

import numpy
import supervision
from PIL import Image
from pycocotools.coco import COCO

folder = Path(sys.argv[1])
(folder / "images").mkdir()
Image.new("RGB", (40, 30)).save(folder / "images" / "a.png")
polygons = [[2, 3, 10, 3, 10, 13, 2, 13], [14, 3, 22, 3, 22, 13, 14, 13]]
thing = {"id": 1, "image_id": 7, "category_id": 9, "bbox": [2, 3, 20, 10], "area": 160, "iscrowd": 0}
content = {
    "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
    "categories": [{"id": 9, "name": "bead"}],
    "annotations": [thing | {"segmentation": polygons}],
}
(folder / "a.json").write_text(json.dumps(content))
coco = COCO(str(folder / "a.json"))
reference = coco.annToMask(coco.anns[1]).astype(bool)
read = supervision.DetectionDataset.from_coco(str(folder / "images"), str(folder / "a.json"), force_masks=True)
other = numpy.asarray(next(iter(read))[2].mask[0], dtype=bool)
iou = (reference & other).sum() / (reference | other).sum()
print(f"pixels {reference.sum()} {other.sum()} IoU {iou:.3f}")
PY
seen=$("$folder/env/bin/python" -W ignore "$folder/compare.py" "$folder" | grep pixels)
echo "$seen"
[ "$seen" = "pixels 160 198 IoU 0.808" ] || { echo "changed: expected 'pixels 160 198 IoU 0.808'"; exit 1; }
echo "as found: one polygon, two masks"
