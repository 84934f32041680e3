#!/usr/bin/env bash
# pycocotools 2.0.11, faster-coco-eval 1.8.0 and hotcoco 1.3.0 (PyPI): mask results that state their boxes as well.
#
# Guess, written down before their documentation was read: in the metric of masks ("segm") a result's "bbox" is not looked at, so APs, APm and
#   APl are the same with and without it.
# Seen: AP, AP50 and AP75 are, APs is not: 0.5 without boxes, 1.0 with them, in all three. With a "bbox" the area of a result is
#   the box's, without one the mask's. A false detection of 613 square pixels in a box of 1,225 counts against small objects (up
#   to 1,024) in the one case and not in the other.
# So: leave the boxes out of mask results (some frameworks do), or APs, APm and APl are not those of the published tables.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
  pycocotools==2.0.11 faster-coco-eval==1.8.0 hotcoco==1.3.0 numpy==2.4.6
cat > "$folder/score.py" <<'PY'
import contextlib
import io
import json
import sys
from pathlib import Path

import faster_coco_eval
import hotcoco
import pycocotools.coco
import pycocotools.cocoeval
from pycocotools import mask

tools = {
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
    "faster-coco-eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    "hotcoco": (hotcoco.COCO, hotcoco.COCOeval),
}


def triangle(x: float) -> list[float]:
    return [x, x, x + 35, x, x, x + 35]


def result(x: float, score: float, with_box: bool) -> dict:
    rle = mask.merge(mask.frPyObjects([triangle(x)], 200, 200))
    rle["counts"] = rle["counts"].decode()
    found = {"image_id": 1, "category_id": 1, "segmentation": rle, "score": score}
    return found | ({"bbox": [x, x, 35, 35]} if with_box else {})


thing = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 35, 35], "iscrowd": 0}
thing |= {"area": 35 * 35 / 2, "segmentation": [triangle(10)]}
content = {
    "images": [{"id": 1, "width": 200, "height": 200}],
    "annotations": [thing],
    "categories": [{"id": 1, "name": "bead"}],
}
path = Path(sys.argv[1]) / "truth.json"
path.write_text(json.dumps(content))
for with_box in (False, True):
    for name, (COCO, COCOeval) in tools.items():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(path))
            found = truth.loadRes([result(110, 0.95, with_box), result(10, 0.9, with_box)])
            evaluation = COCOeval(truth, found, "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        ap, aps = float(evaluation.stats[0]), float(evaluation.stats[3])
        print(f"{'masks and boxes' if with_box else 'masks'}: {name} AP {ap:.4f} APs {aps:.4f}")
PY
seen=$("$folder/env/bin/python" -W ignore "$folder/score.py" "$folder")
echo "$seen"
expected="masks: pycocotools AP 0.5000 APs 0.5000
masks: faster-coco-eval AP 0.5000 APs 0.5000
masks: hotcoco AP 0.5000 APs 0.5000
masks and boxes: pycocotools AP 0.5000 APs 1.0000
masks and boxes: faster-coco-eval AP 0.5000 APs 1.0000
masks and boxes: hotcoco AP 0.5000 APs 1.0000"
[ "$seen" = "$expected" ] || { echo "changed"; exit 1; }
echo "as found: a box beside a mask decides the mask's size"
