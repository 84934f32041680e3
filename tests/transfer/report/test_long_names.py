"""Names as long as people make them leave the figures their width."""

import re
from pathlib import Path

from carryover.transfer.report import write_report
from carryover.transfer.report.drawing import fitted
from carryover.transfer.results.record import write_record
from tests.transfer.records import record

LONG = "simo_resnet50_imagenet1k_800ep_bs4096_lars_cosine_warmup10_projector3x8192_crops224x2_96x6_trial"


def test_a_name_is_broken_at_its_separators_and_keeps_beginning_and_end() -> None:
    assert fitted("SiMo", 22) == "SiMo"
    assert fitted("moco-v2-800ep-resnet50-plus", 16) == "moco-v2-800ep-\nresnet50-plus"
    lines = fitted(LONG, 22).split("\n")
    assert len(lines) <= 3 and max(map(len, lines)) <= 22
    assert lines[0].startswith("simo_resnet50") and lines[-1].endswith("trial") and "…" in "".join(lines)
    assert max(map(len, fitted("x" * 300, 20).split("\n"))) <= 20


def test_figures_keep_their_width_under_long_names(tmp_path: Path) -> None:
    widths = {}
    for kind, names in {"short": ("a", "b"), "long": (LONG + "1", LONG + "2")}.items():
        for number, name in enumerate(names):
            out = tmp_path / kind / name
            stated = {"pretrain_label": name, "method": "simo", "pretrain_recipe": "imported"}
            write_record(record(60.0 + number, checkpoint_sha256=str(number) * 64, **stated), out)
        write_report([tmp_path / kind], tmp_path / f"{kind}-report", formats=("html",))
        page = (tmp_path / f"{kind}-report" / "index.html").read_text(encoding="utf-8")
        figure = page.partition('id="figures"')[2].partition("<figure")[2].partition("</figure>")[0]
        # The grid of the axes: as long as the values have room.
        box = re.search(r'viewBox="0 0 ([\d.]+) ', figure)
        ticks = sorted({float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)"', figure)})
        assert box is not None and ticks
        widths[kind] = (float(box[1]), ticks[-1], ticks[0])
    assert widths["long"][0] == widths["short"][0], "all figures are of one width"
    # What is drawn begins no further right than the middle of the figure.
    assert widths["long"][2] < 0.55 * widths["long"][0]
