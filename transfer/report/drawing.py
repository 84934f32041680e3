"""Drawing with matplotlib: one figure as SVG that follows the page's colors, and as PDF for papers."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carryover.transfer.report.collection import Pretraining
from carryover.transfer.report.naming import RANDOM, SUPERVISED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1b1f24"
SOFT = "#57606a"
LINE = "#d0d7de"
BAND = "#eaeef2"
GRAY = "#6e7781"
# Readable on white, and told apart with any color vision; after Okabe and Ito.
SERIES = ("#0072b2", "#d55e00", "#00805a", "#b0508a", "#8a6d00", "#5b4fc4", "#2b8ca3", "#a03030")
_VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", BAND: "band", GRAY: "gray"} | {
    color: f"s{i}" for i, color in enumerate(SERIES, start=1)
}
_MARKERS = "D^vPXdp*"
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": BAND,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Look:
    """Style of one pretraining in every figure."""

    color: str
    marker: str
    dashes: Any


@dataclass(frozen=True)
class Picture:
    """A finished figure: its file name, its words, and the SVG to put into a page."""

    name: str
    caption: str
    alternative: str
    svg: str

    @property
    def ratio(self) -> str:
        """Width to height, as style sheets write it: ``316.8 / 223.2``."""
        found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', self.svg)
        return " / ".join(found.groups()) if found else "auto"


def looks(pretrainings: Sequence[Pretraining]) -> dict[Pretraining, Look]:
    """Give every pretraining its color and marker; baselines are gray, colors repeat after eight."""
    found = {}
    series = 0
    for pretraining in pretrainings:
        if pretraining.method == RANDOM:
            found[pretraining] = Look(GRAY, "s", (0, (1, 1.2)))
        elif pretraining.method == SUPERVISED:
            found[pretraining] = Look(INK, "o", (0, (4, 1.5)))
        else:
            marker = _MARKERS[series % len(_MARKERS)]
            found[pretraining] = Look(SERIES[series % len(SERIES)], marker, "solid")
            series += 1
    return found


def new_figure(width: float, height: float) -> "tuple[Figure, Any]":
    """Return an empty figure (inches) with one pair of axes, in the report's style."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(length=0)
    return figure, axes


def fitted(text: str, width: int, lines: int = 2) -> str:
    """Return a name in lines of `width` characters, broken at its own separators; the middle may be left out.

    A name as long as people make them would take the room that its figure is drawn in.
    """
    most = width * lines - lines + 1
    if len(text) > most:
        tail = most // 2
        text = f"{text[: most - tail - 1]}…{text[-tail:]}"
    found = [""]
    for part in re.findall(r"[^\s_/.,:-]*[\s_/.,:-]?", text):
        while len(part) > width:
            room = width - len(found[-1])
            found[-1] += part[:room]
            part = part[room:]
            found.append("")
        if len(found[-1]) + len(part.rstrip()) > width:
            found.append("")
        found[-1] += part
    return "\n".join(line.strip() for line in found if line.strip())


def head(figure: "Figure", title: str) -> None:
    """Set a figure's title, flush left."""
    # Eleven bold characters of 10 points fit into an inch of the widest font in use, DejaVu Sans.
    title = fitted(title, int(11 * figure.get_figwidth()))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)


def legend(figure: "Figure", columns: int = 2, markerscale: float = 1) -> None:
    """Put the legend below the axes, where it covers nothing."""
    for axes in figure.axes:
        for drawn in axes.get_legend_handles_labels()[0]:
            drawn.set_label(fitted(str(drawn.get_label()), 52 // columns, 1))
    figure.legend(
        markerscale=markerscale,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )


def finish(figure: "Figure", name: str, caption: str, alternative: str, directory: Path | None) -> Picture:
    """Render a figure for the page, and as name.svg and name.pdf into `directory` if there is one."""
    import matplotlib as mpl

    text = io.StringIO()
    # The salt keeps ids of two figures in one page apart, and those of two renderings the same.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{name}.svg").write_text(text.getvalue(), encoding="utf-8")
            figure.savefig(directory / f"{name}.pdf", metadata={"CreationDate": None})
    return Picture(name, caption, alternative, _for_page(text.getvalue(), name))


def _for_page(svg: str, name: str) -> str:
    """Keep the drawing only, in the page's own colors, with ids that are its own and only those in use.

    Shared styles of the figures are defined once, in page.css: a style sheet in each would have the browser
    style the whole page again for every figure.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>", "", svg)
    svg = re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 focusable="false">', svg)
    svg = svg.replace("xlink:href", "href")
    used = {a or b for a, b in re.findall(r'href="#([^"]+)|url\(#([^)]+)', svg)}
    svg = re.sub(r' id="([^"]+)"', lambda m: m.group() if m.group(1) in used else "", svg)
    svg = _without_bare_groups(svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1system-ui, sans-serif", svg)
    svg = re.sub(r" font-family: 'DejaVu Sans'[^;\"]*;?", "", svg)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return re.sub(r"\s*\n\s*", "\n", svg).strip()


def _without_bare_groups(svg: str) -> str:
    """Unwrap groups without attributes (matplotlib puts nearly every mark into one), and drop empty ones."""
    kept: list[bool] = []

    def of(tag: re.Match[str]) -> str:
        if tag.group().endswith("/>"):
            return ""
        if not tag.group().startswith("</"):
            kept.append(tag.group() != "<g>")
            return tag.group() if kept[-1] else ""
        return tag.group() if kept.pop() else ""

    return re.sub(r"</?g\b[^>]*>", of, svg)
