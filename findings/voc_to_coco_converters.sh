#!/usr/bin/env bash
# supervision 0.31.2 and globox 2.9.0 (PyPI): a Pascal VOC box written as COCO, and a COCO crowd read and written again.
#
# Guess, written down before it was run: both converters give a VOC box the same COCO box; a crowd stays a crowd, and a stated
#   area stays what it was.
# Seen: VOC's box 1, 1, 40, 30 (the whole image of 40 x 30; pixels are counted from 1 and the last is included) becomes
#   [0, 0, 40, 30] by supervision and [1, 1, 39, 29] by globox: a pixel is missing on two sides. Written again by globox, a crowd
#   is an object like others (iscrowd 0), and the area is the box's, 200, in place of the mask's, 77.5: both change AP, and AP
#   by size. supervision keeps the two, and numbers the categories anew (9 becomes 1).
# So: ask which tool wrote a COCO file that once was VOC; an AP at high IoU of small objects differs by it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check supervision==0.31.2 globox==2.9.0 numpy==2.4.6 pillow==13.0.0
cat > "$folder/convert.py" <<'PY'
import json
import sys
from pathlib import Path

import supervision
from globox import AnnotationSet
from PIL import Image

folder = Path(sys.argv[1])
for name in ("images", "voc"):
    (folder / name).mkdir()
Image.new("RGB", (40, 30)).save(folder / "images" / "a.png")
edges = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), (1, 1, 40, 30)))
thing = f"<object><name>bead</name><difficult>0</difficult><bndbox>{edges}</bndbox></object>"
size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
(folder / "voc" / "a.xml").write_text(f"<annotation><filename>a.png</filename>{size}{thing}</annotation>")
box = {"image_id": 7, "category_id": 9, "bbox": [2, 3, 20, 10], "segmentation": [[2, 3, 22, 3, 12, 13]]}
content = {
    "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
    "categories": [{"id": 9, "name": "bead"}],
    "annotations": [box | {"id": 1, "area": 77.5, "iscrowd": 1}],
}
(folder / "in.json").write_text(json.dumps(content))


def first(name):
    return json.loads((folder / name).read_text())["annotations"][0]


images = str(folder / "images")
supervision.DetectionDataset.from_pascal_voc(images, str(folder / "voc")).as_coco(
    annotations_path=str(folder / "s_voc.json")
)
AnnotationSet.from_pascal_voc(folder / "voc").save_coco(folder / "g_voc.json", auto_ids=True)
supervision.DetectionDataset.from_coco(images, str(folder / "in.json")).as_coco(
    annotations_path=str(folder / "s_coco.json")
)
AnnotationSet.from_coco(folder / "in.json").save_coco(folder / "g_coco.json", auto_ids=True)
for tool, letter in (("supervision", "s"), ("globox", "g")):
    again = first(f"{letter}_coco.json")
    print(tool, [int(v) for v in first(f"{letter}_voc.json")["bbox"]], again["iscrowd"], again["area"], again["category_id"])
PY
seen=$("$folder/env/bin/python" -W ignore "$folder/convert.py" "$folder" | grep '^supervision\|^globox')
expected="supervision [0, 0, 40, 30] 1 77.5 1
globox [1, 1, 39, 29] 0 200.0 9"
printf 'tool, VOC box as COCO, crowd, area and category written again:\n%s\n' "$seen"
[ "$seen" = "$expected" ] || { printf 'changed: expected\n%s\n' "$expected"; exit 1; }
echo "as found: two converters, two boxes"
