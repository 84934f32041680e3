"""Read boxes from a csv file: one row a box, columns known by title or by their order (torch-free)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from carryover.configs import UserError
from carryover.core.data.csv_table import Table, read_table
from carryover.core.data.names import as_number, as_size, flag

TITLES: Final[dict[str, tuple[str, ...]]] = {
    "image": (
        "filename", "imagename", "imageid", "imagepath", "filepath", "image", "img", "imgpath", "path",
        "file",
    ),
    "label": (
        "class", "label", "classname", "labelname", "category", "categoryname", "name", "classid",
        "objectclass",
    ),
    "xmin": ("xmin", "x1", "left", "xtl", "bboxxmin"),
    "ymin": ("ymin", "y1", "top", "ytl", "bboxymin"),
    "xmax": ("xmax", "x2", "right", "xbr", "bboxxmax"),
    "ymax": ("ymax", "y2", "bottom", "ybr", "bboxymax"),
    "x": ("bboxx", "x", "boxx"),
    "y": ("bboxy", "y", "boxy"),
    "width": ("bboxwidth", "w", "boxwidth", "bboxw", "width"),
    "height": ("bboxheight", "h", "boxheight", "bboxh", "height"),
    "image_width": ("imagewidth", "imgwidth", "imgw", "width"),
    "image_height": ("imageheight", "imgheight", "imgh", "height"),
    "difficult": ("difficult", "isdifficult"),
    "crowd": ("isgroupof", "iscrowd", "crowd"),
    "split": ("split", "set", "subset", "mlusage"),
}  # fmt: skip
"""The titles by which a column is known: TensorFlow's xml_to_csv and Roboflow (filename, xmin), Open Images
(ImageID, XMin), makesense.ai (image_name, bbox_x), RetinaNet with titles (x1)."""

CORNERS, EXTENT = ("xmin", "ymin", "xmax", "ymax"), ("x", "y", "width", "height")
Columns = dict[str, int]

_WITHOUT_TITLES: Final[tuple[Columns, ...]] = (
    # keras-retinanet: path/to/image.jpg,x1,y1,x2,y2,class_name; without objects: path/to/image.jpg,,,,,
    {"image": 0, "xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4, "label": 5},
    # Google's AutoML Vision: set,path,label,x_min,y_min,,,x_max,y_max,,
    {"split": 0, "image": 1, "label": 2, "xmin": 3, "ymin": 4, "xmax": 7, "ymax": 8},
    # makesense.ai: label,x,y,width,height,image,image_width,image_height
    {"label": 0, "x": 1, "y": 2, "width": 3, "height": 4, "image": 5, "image_width": 6, "image_height": 7},
)
_PICTURE = re.compile(r"\.(jpe?g|png|bmp|tiff?|webp|gif|ppm)$", re.IGNORECASE)


@dataclass(frozen=True)
class BoxRow:
    """One row: an image and, unless it has none, one of its objects.

    Attributes
    ----------
    box
        Its corners as the file has them, or made of its extent; None for an image without objects.
    problem
        What is wrong with the object; "" for nothing.
    size
        The image's (width, height) as the row states it.
    """

    line: int
    image: str
    label: str = ""
    box: tuple[float, float, float, float] | None = None
    problem: str = ""
    difficult: bool = False
    crowd: bool = False
    split: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class BoxTable:
    """A file's rows, and whether its coordinates are shares of the image's width and height."""

    file: Path
    rows: tuple[BoxRow, ...]
    normalized: bool


def read_box_table(file: Path, columns: Mapping[str, str]) -> BoxTable:
    """Read a csv file of boxes; `columns` are titles that a recipe states for the keys of `TITLES`.

    Coordinates are normalized where all of them lie between 0 and 1.

    Raises UserError for a file whose columns are not known, or that cannot be read.
    """
    table = read_table(file)
    known, rows = _columns(table, columns)
    read = tuple(_row(line, cells, known) for line, cells in rows)
    numbers = [n for row in read if row.box is not None for n in row.box]
    normalized = bool(numbers) and max(numbers) <= 1 and min(numbers) >= 0
    return BoxTable(file, _with_names(file, read), normalized)


def _columns(
    table: Table, stated: Mapping[str, str]
) -> tuple[Columns, Sequence[tuple[int, tuple[str, ...]]]]:
    """Return the columns by what they are, and the rows that hold data."""
    found = {what: table.stated_column(what, stated, names) for what, names in TITLES.items()}
    known = {what: index for what, index in found.items() if index is not None}
    # "width" and "height" are the image's beside corners, and the box's beside x and y.
    for what in ("width", "height"):
        if what in known and known[what] == known.get(f"image_{what}"):
            del known[what if _has(known, CORNERS) else f"image_{what}"]
    if "image" in known and "label" in known and (_has(known, CORNERS) or _has(known, EXTENT)):
        return known, table.body
    if not stated and len(known) < 3:
        for order in _WITHOUT_TITLES:
            if len(table.titles) > max(order.values()) and _fits(table, order):
                return order, table.rows
    if table.column(["region_shape_attributes"]) is not None:
        raise UserError(
            f"{table.file}: VIA's own csv, with shapes as JSON; export it as COCO instead (kind: coco)"
        )
    missing = [what for what in ("image", "label", *CORNERS) if what not in known]
    raise UserError(
        f"{table.file}: no column for {', '.join(missing)} among its titles ({', '.join(table.titles)});"
        " expected filename,class,xmin,ymin,xmax,ymax in any order, or `data: {columns: {image: TITLE, ...}}`"
    )


def _has(columns: Columns, wanted: Sequence[str]) -> bool:
    return all(what in columns for what in wanted)


def _fits(table: Table, order: Columns) -> bool:
    """Return whether a file without titles has its columns in this order, by its first rows."""
    corners = [order[what] for what in (CORNERS if "xmin" in order else EXTENT)]
    for _, cells in table.rows[:20]:
        if len(cells) <= max(order.values()) or not _PICTURE.search(cells[order["image"]]):
            return False
        values = [cells[i] for i in corners]
        if any(values) and any(as_number(value) is None for value in values):
            return False
    return True


def _row(line: int, cells: tuple[str, ...], columns: Columns) -> BoxRow:
    def cell(what: str) -> str:
        index = columns.get(what)
        return cells[index] if index is not None and index < len(cells) else ""

    edges = CORNERS if _has(columns, CORNERS) else EXTENT
    stated = [cell(what) for what in edges]
    size = as_size(cell("image_width"), cell("image_height"))
    row = BoxRow(line, cell("image"), cell("label"), split=cell("split"), size=size)
    if not any(stated):
        return row
    numbers = [as_number(text) for text in stated]
    difficult, crowd = flag(cell("difficult")), flag(_as_flag(cell("crowd")))
    if None in numbers:
        return _with(row, problem=f"its box needs four numbers {', '.join(edges)}, not {stated}")
    if not row.label:
        return _with(row, problem="it has no class")
    if difficult is None or crowd is None:
        return _with(row, problem="its flag (difficult, crowd) is neither yes nor no")
    a, b, c, d = (float(n) for n in numbers if n is not None)
    box = (a, b, c, d) if edges is CORNERS else (a, b, a + c, b + d)
    if box[2] < box[0] or box[3] < box[1]:
        return _with(row, problem=f"its box ends before it begins ({', '.join(stated)})")
    return _with(row, box=box, difficult=difficult or crowd, crowd=crowd)


def _with(row: BoxRow, **changed: object) -> BoxRow:
    return BoxRow(**{**row.__dict__, **changed})


def _as_flag(text: str) -> str:
    # Open Images writes -1 for "not known".
    return "0" if text == "-1" else text


def _with_names(file: Path, rows: tuple[BoxRow, ...]) -> tuple[BoxRow, ...]:
    """Replace Open Images' codes by the names of its list of classes, where that lies near."""
    if not any(row.label.startswith("/m/") for row in rows):
        return rows
    names = dict(_class_descriptions(file))
    return tuple(_with(row, label=names.get(row.label, row.label)) for row in rows)


def _class_descriptions(file: Path) -> Iterator[tuple[str, str]]:
    for folder in (file.parent, file.parent.parent):
        for listing in sorted(folder.glob("*class-descriptions*.csv")):
            yield from ((cells[0], cells[1]) for _, cells in read_table(listing).rows if len(cells) > 1)
            return
