#!/usr/bin/env bash
# pycocotools 2.0.11, faster-coco-eval 1.8.0 and hotcoco 1.3.0 (PyPI): a COCO file whose annotation ids count from 0.
#
# Guess, written down before it was run: pycocotools, which notes a match as the object's id and reads 0 as "no match", never
#   finds an object with the id 0; the other two promise its numbers and give the same.
# Seen: of two objects that are both found, with ids from 0, the AP is 0.2525 in pycocotools and faster-coco-eval (which warns)
#   and 1.0 in hotcoco, whose numbers are pycocotools' otherwise. With ids from 1 it is 1.0 in all three.
# So: number the annotations anew before scoring, many exporters count from 0. In a large file it costs little, nobody sees it,
#   and changing the evaluator changes the number.
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

tools = {
    "pycocotools": (pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval),
    "faster-coco-eval": (faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster),
    "hotcoco": (hotcoco.COCO, hotcoco.COCOeval),
}
box = [10, 10, 20, 20]
found = [{"image_id": i, "category_id": 1, "bbox": box, "score": 1 - i / 10} for i in (1, 2)]
for first in (1, 0):
    things = [
        {"id": first + i, "image_id": 1 + i, "category_id": 1, "bbox": box, "area": 400, "iscrowd": 0} for i in (0, 1)
    ]
    content = {
        "images": [{"id": i, "width": 100, "height": 100} for i in (1, 2)],
        "annotations": things,
        "categories": [{"id": 1, "name": "bead"}],
    }
    path = Path(sys.argv[1]) / f"{first}.json"
    path.write_text(json.dumps(content))
    for name, (COCO, COCOeval) in tools.items():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(path))
            evaluation = COCOeval(truth, truth.loadRes([dict(d) for d in found]), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        print(f"ids from {first}: {name} AP {float(evaluation.stats[0]):.4f}")
PY
seen=$("$folder/env/bin/python" -W ignore "$folder/score.py" "$folder")
echo "$seen"
expected="ids from 1: pycocotools AP 1.0000
ids from 1: faster-coco-eval AP 1.0000
ids from 1: hotcoco AP 1.0000
ids from 0: pycocotools AP 0.2525
ids from 0: faster-coco-eval AP 0.2525
ids from 0: hotcoco AP 1.0000"
[ "$seen" = "$expected" ] || { echo "changed"; exit 1; }
echo "as found: an object with the id 0 is never found, but by one of the three"
