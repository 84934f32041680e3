"""Labels that a pretraining saves: stated where the curves and their intervals support it, and only there."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from carryover.transfer.report.learning_curves import collected, points, saved_labels, write
from carryover.transfer.report.savings import At, Saved, saved
from carryover.transfer.report.statistics import p_value
from carryover.transfer.report.write import write_report
from carryover.transfer.results.record import Metric, ResultRecord, write_record
from tests.transfer.records import record
from tests.transfer.report.gathered import gathered

GRID = (0.01, 0.05, 0.1, 0.2, 0.5, 1.0)


def curve(method: str, means: Sequence[float], half: float = 1.0, **changes: object) -> list[ResultRecord]:
    """Return three seeds at every share of 1,200 labels, each with an interval of `half` to either side."""
    return [
        record(
            metrics=(Metric(name="top1", value=m + d, n=2000, low=m + d - half, high=m + d + half),),
            method=method,
            pretrain_recipe=method,
            recipe_hash=f"{i:x}" * 64,
            seed=seed,
            label_fraction=share,
            train_images=round(1200 * share),
            **changes,
        )
        for i, (share, m) in enumerate(zip(GRID, means))
        for seed, d in enumerate((-0.2, 0.0, 0.2))
    ]


def text_of(*records: ResultRecord) -> str:
    (family,) = saved_labels(gathered(*records))
    (text,) = family.texts
    return text


def test_the_share_that_random_initialization_needs_is_stated_with_its_range() -> None:
    text = text_of(*curve("random", (20, 30, 40, 50, 60, 70)), *curve("simo", (22.5, 54, 60, 65, 67, 70.2)))
    assert text == (
        "With 5 % of the labels (60 images), SiMo reaches what random initialization reaches with 20 % (240"
        " images) (54.0 ± 0.2 against 50.0 ± 0.2), and not what it reaches with 50 % (600 images): 4 to 10"
        " times fewer labels. With equally many labels, SiMo is better at 1, 5, 10, 20 and 50 %; no"
        " difference was found at 100 %."
    )


def test_the_end_of_the_grid_and_a_next_share_without_a_difference_are_only_a_least_factor() -> None:
    random = curve("random", (20, 30, 40, 50, 60, 70))
    ahead = text_of(*random, *curve("simo", (80, 82, 83, 84, 85, 86)))
    assert "With 1 % of the labels (12 images), SiMo reaches" in ahead
    assert "with 100 % (1,200 images) (80.0" in ahead
    assert "the largest share of the grid: at least 100 times fewer labels." in ahead
    open_end = text_of(
        *curve("random", (20, 30, 40, 50, 60, 60.2)), *curve("simo", (20, 30, 60.3, 60.4, 60.5, 60.6))
    )
    assert "; whether it reaches more was not found: at least " in open_end


def test_curves_that_intervals_do_not_part_save_nothing() -> None:
    random = curve("random", (20, 30, 40, 50, 60, 70), half=15)
    assert text_of(*random, *curve("simo", (21, 32, 42, 51, 61, 70), half=15)) == (
        "No difference between SiMo and random initialization was found at 1, 5, 10, 20, 50 and 100 % of the"
        " labels."
    )
    coarse = text_of(*curve("random", (20, 30, 40, 50, 60, 70)), *curve("simo", (24, 34, 44, 54, 64, 74)))
    assert coarse.startswith("With equally many labels, SiMo is better at 1, 5, 10, 20, 50 and 100 %.")
    assert "How many labels that saves was not found: on this grid, no point reaches" in coarse


def test_a_pretraining_that_costs_labels_is_told_as_one() -> None:
    text = text_of(*curve("random", (22.5, 54, 60, 65, 67, 70)), *curve("simo", (20, 30, 40, 50, 60, 66)))
    assert "With 5 % of the labels (60 images), random initialization reaches what SiMo reaches" in text
    assert "SiMo is worse at 1, 5, 10, 20, 50 and 100 %." in text


def test_every_baseline_of_the_network_is_compared_and_a_missing_one_is_said() -> None:
    records = [
        *curve("random", (20, 30, 40, 50, 60, 70)),
        *curve("supervised", (60, 70, 75, 80, 85, 90)),
        *curve("simo", (40, 54, 60, 65, 67, 70)),
        *curve("byol", (40, 54, 60, 65, 67, 70), backbone="vit_small"),
    ]
    (family,) = saved_labels(gathered(*records))
    byol, *simo = family.texts
    assert byol == "BYOL: no baseline of its network, vit_small, is among the curves."
    assert ["random initialization" in text for text in simo] == [True, False]
    assert "Supervised reaches what SiMo reaches" in simo[1]
    single = [r for r in records if r.seed == 0 and r.method in ("random", "simo")]
    bare = [r.model_copy(update={"metrics": (Metric(name="top1", value=1, n=9),)}) for r in single]
    assert text_of(*bare) == ("SiMo and random initialization: not compared; single runs without intervals.")
    assert saved_labels(gathered(*curve("simo", (40, 54, 60, 65, 67, 70)))) == []


def test_equal_curves_are_told_apart_no_oftener_than_the_level_says() -> None:
    rng = np.random.default_rng(0)

    def drawn(name: str) -> list[At]:
        shared = rng.normal(0, 1, len(GRID))
        records = []
        for i, share in enumerate(GRID):
            for seed in range(3):
                value = 50 + shared[i] + rng.normal(0, 1)
                half = 1.96
                metric = Metric(name="top1", value=value, n=2000, low=value - half, high=value + half)
                records.append(
                    record(
                        metrics=(metric,),
                        method=name,
                        seed=seed,
                        label_fraction=share,
                        recipe_hash=f"{i}" * 64,
                    )
                )
        found = points(gathered(*records))
        return [At(p.share, p.train_images, p.cell) for p in found]

    def claims(one: Saved | None) -> bool:
        assert one is not None
        return bool(one.better or one.worse or one.saving or one.cost)

    wrong = sum(claims(saved(("a", drawn("a")), ("b", drawn("b")), True)) for _ in range(100))
    assert wrong <= 8, "of 100, 5 are expected at most, with a deviation of 2.2"


def test_a_loss_is_saved_by_the_lower_of_two_curves() -> None:
    def lower(records: list[ResultRecord]) -> list[At]:
        return [At(p.share, p.train_images, p.cell) for p in points(gathered(*records))]

    ours, base = (
        lower(curve("simo", (5, 4, 3, 2, 1, 1), 0.01)),
        lower(curve("random", (9, 8, 7, 6, 5, 4), 0.01)),
    )
    found = saved(("a", ours), ("b", base), False)
    assert found is not None and found.saving is not None and not found.worse
    assert saved(("a", base), ("b", ours), False).cost == found.saving


def test_p_values_are_students_with_satterthwaites_degrees() -> None:
    from scipy import stats

    assert p_value(1.96, 1.0, ()) == pytest.approx(0.05, abs=1e-4)
    one, other = [61.2, 63.0, 60.1], [55.0, 58.9, 57.7, 51.0]
    parts = [(float(np.var(v, ddof=1)) / len(v), len(v) - 1) for v in (one, other)]
    welch = stats.ttest_ind(one, other, equal_var=False)
    found = p_value(float(np.mean(one) - np.mean(other)), sum(v for v, _ in parts), parts)
    assert found == pytest.approx(welch.pvalue, rel=1e-9)
    assert p_value(3.0, 0.0, ()) == 1.0


def test_the_report_states_it_beside_the_figure_and_curve_md_below_the_table(tmp_path: Path) -> None:
    records = [*curve("random", (20, 30, 40, 50, 60, 70)), *curve("simo", (22.5, 54, 60, 65, 67, 70))]
    for i, one in enumerate(records):
        (tmp_path / "run" / str(i)).mkdir(parents=True)
        write_record(one, tmp_path / "run" / str(i))
    write_report([tmp_path / "run"], tmp_path / "report", formats=("html", "md"))
    sentence = "SiMo reaches what random initialization reaches with 20 %"
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    before, _, after = page.partition('<h3 id="saved">')
    assert sentence not in before and sentence in after.partition("</figure>")[0]
    assert sentence in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    collection = collected([tmp_path / "run"])
    files = write(points(collection), saved_labels(collection), tmp_path)
    assert sentence in files[1].read_text(encoding="utf-8")
