"""Duplicates, disagreement, mixtures and gaps are shown, never averaged away."""

from carryover.transfer.report.concerns import concerns
from carryover.transfer.results.record import Metric, ResultRecord
from tests.transfer.records import record
from tests.transfer.report.gathered import gathered, tables_of


def titles(*records: ResultRecord) -> dict[str, list[str]]:
    return {c.title: [case.text for case in c.cases] for c in concerns(gathered(*records))}


def test_clean_records_raise_no_concern() -> None:
    assert titles(record(seed=0), record(seed=1), record(seed=0, method="simo")) == {
        "Missing seeds": ["SiMo, one_percent: without evaluation seed 1"]
    }
    assert titles(record(seed=0), record(seed=1)) == {}


def test_an_exact_repetition_counts_once() -> None:
    runs = [record(50.0, seed=0), record(50.0, seed=0, host="elsewhere"), record(54.0, seed=1)]
    (table,) = tables_of(*runs)
    cell = table.rows[0].cells[0]
    assert (cell.mean, cell.n, len(cell.sources)) == (52.0, 2, 3)
    assert titles(*runs) == {"Repeated records": ["UniGrad, one_percent, seed 0"]}


def test_reruns_that_disagree_have_no_mean_and_no_rank() -> None:
    runs = [record(50.0, seed=0), record(57.0, seed=0), record(54.0, seed=1), record(1.0, method="simo")]
    (table,) = tables_of(*runs)
    cell = next(r for r in table.rows if r.label == "UniGrad").cells[0]
    assert cell.mean is None and cell.rank == 0 and cell.text() == "50.0 | 54.0 | 57.0"
    (concern,) = (c for c in concerns(gathered(*runs)) if c.title == "Reruns that disagree")
    assert [case.records for case in concern.cases] == [(1, 2)]


def test_two_checkpoints_of_one_recipe_and_seed_are_two_rows() -> None:
    runs = [record(50.0), record(60.0, checkpoint_sha256="d" * 64)]
    (table,) = tables_of(*runs)
    assert [r.cells[0].mean for r in table.rows] == [50.0, 60.0]
    assert len({r.label for r in table.rows}) == 2
    assert len(titles(*runs)["Different checkpoints of one recipe and seed"]) == 2


def test_mixed_protocols_backends_and_selections_are_named() -> None:
    assert titles(record(), record(recipe_hash="c" * 64)) == {
        "Different protocols under one name": [
            "one_percent on shapes: 2 recipe hashes (bbbbbbbbbbbb, cccccccccccc)"
        ]
    }
    model = "Faster R-CNN C4"
    theirs = record(task="detection", model=model, backend="detectron2", backend_version="0.6", recipe="d2")
    assert titles(record(task="detection", model=model), theirs)["Different protocols under one name"] == [
        "Faster R-CNN C4 on shapes: 2 backends (detectron2 0.6, torchvision 0.29)"
    ]
    best = record(selection="best", selected_on="held-out")
    assert titles(record(), best)["Different protocols under one name"] == [
        "one_percent on shapes: 2 ways of selecting the checkpoint (best, last)"
    ]


def test_other_amounts_of_data_under_one_recipe_are_named() -> None:
    fewer = record(seed=1, metrics=(Metric(name="top1", value=50.0, n=400),), train_images=10)
    assert titles(record(), fewer)["Different data under one protocol"] == [
        "one_percent: tested on 400, 500 images",
        "one_percent: trained on 10, 20 images",
    ]


def test_other_code_in_one_cell_is_named() -> None:
    runs = [record(seed=0), record(seed=1, git_revision="def")]
    assert titles(*runs)["Different code revisions in one cell"] == ["UniGrad, one_percent: abc, def"]


def test_other_libraries_that_read_pictures_and_many_ties_are_named() -> None:
    versions = [{"pillow": v, "opencv-python-headless": w} for v, w in (("12.1.0", "4.12"), ("13.0", "4.11"))]
    runs = [record(seed=i, library_versions=v, ties=(i * 21,)) for i, v in enumerate(versions)]
    found = titles(*runs)
    assert found["Pictures read by different libraries"] == [
        "one_percent: Pillow 12 (1 records), Pillow 13 (1 records)"
    ]
    assert found["Equal scores"] == ["UniGrad, one_percent: 21 of 500 images"]
    assert "Equal scores" not in titles(record(ties=(0,))), "nor where nothing ties"


def test_results_on_data_that_were_mended_stand_in_columns_of_their_own() -> None:
    same = {"recipe": "voc", "task": "detection"}
    runs = [record(50.0 + i, seed=i, data_digest=d * 64, **same) for i, d in enumerate("aab")]
    collection = gathered(*runs, record(60.0, seed=3, **same))
    assert len(collection.evaluations) == 3, "one column of each state of the data, one where it is not known"
    (found,) = (c for c in concerns(collection) if c.title == "Different protocols under one name")
    assert [c.text for c in found.cases] == [
        "voc on shapes: 3 states of the data (aaaaaaaaaaaa, bbbbbbbbbbbb, not known)"
    ]
    assert len(gathered(*runs[:2], record(60.0, seed=3, **same)).evaluations) == 1


def test_results_of_two_versions_of_a_task_are_not_pooled() -> None:
    collection = gathered(record(50.0), record(51.0, seed=1, task_version=2))
    assert len(collection.evaluations) == 2


def test_one_backbone_in_two_files_is_one_row() -> None:
    made = {"checkpoint_sha256": "c" * 64, "backbone_digest": "d" * 64}
    collection = gathered(
        record(50.0, **made), record(51.0, seed=1, **made | {"checkpoint_sha256": "e" * 64})
    )
    assert len(collection.pretrainings) == 1
    old = record(52.0, seed=2, checkpoint_sha256="c" * 64)
    assert len(gathered(record(50.0, **made), old).pretrainings) == 1, "a record of 0.1 of the same file"


def test_what_a_mean_is_over_and_by_which_rule() -> None:
    rules = "11-point AP (VOC 2007)", "AP, area under the curve (VOC 2010 on)"
    facts = [{"metric_rule": rule, "classes": 4, "classes_measured": 4 - n} for n, rule in enumerate(rules)]
    runs = [record(seed=n).model_copy(update={"facts": fact}) for n, fact in enumerate(facts)]
    found = titles(*runs)
    assert found["Classes without a test object or pixel"] == ["UniGrad, one_percent: 3 of 4 classes"]
    assert found["Different rules of one metric"] == ["; ".join(rules)]
    assert titles(runs[0]) == {}
