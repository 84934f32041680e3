"""The comparison of gradients as a picture: one heat-map of cosines, one of norms."""

from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

from carryover.transfer.report.drawing import INK, SOFT, head
from carryover.transfer.studies.writing import rounded, short

if TYPE_CHECKING:
    from carryover.pretrain.studies.gradients import GradientComparison


def draw_gradients(compared: "GradientComparison", directory: Path) -> None:
    """Write gradients.svg and gradients.png: every cell annotated, its color the same number's."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    cosine, ratio = compared.cosine.numpy(), compared.norm_ratio.log10().numpy()
    cells = 0.5 * len(compared.names)
    style: Any = {"font.family": "sans-serif", "svg.fonttype": "none", "svg.hashsalt": "gradients"}
    with mpl.rc_context(style):
        figure = Figure(figsize=(2 * cells + 3, cells + 1), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw(left, cosine, "RdBu_r", 1.0, [[rounded(v) for v in row] for row in cosine.tolist()])
        texts = [[short(10**v) for v in row] for row in ratio.tolist()]
        _draw(right, ratio, "PuOr_r", max(1.0, float(abs(ratio).max())), texts)
        letters = list(ascii_lowercase[: len(compared.names)])
        left.set_yticks(range(len(letters)), [f"{n}  {x}" for n, x in zip(compared.names, letters)])
        right.set_yticks(range(len(letters)), letters)
        left.set_title("cosine similarity", fontsize=9, color=SOFT, loc="left")
        right.set_title("norm of the row's in units of the column's", fontsize=9, color=SOFT, loc="left")
        for axes in (left, right):
            axes.set_xticks(range(len(letters)), letters)
            axes.tick_params(length=0, labelsize=8, labelcolor=INK)
            axes.spines[:].set_visible(False)
        head(figure, "The methods' gradients in the same embeddings of one batch")
        figure.savefig(directory / "gradients.svg", metadata={"Date": None})
        figure.savefig(directory / "gradients.png", dpi=120)


def _draw(axes: Any, values: Any, colors: str, most: float, texts: list[list[str]]) -> None:
    axes.imshow(values, cmap=colors, vmin=-most, vmax=most)
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            # White where the cell is too dark for ink.
            shade = "white" if abs(values[i, j]) > 0.7 * most else INK
            axes.text(j, i, text, ha="center", va="center", fontsize=6.5, color=shade)
