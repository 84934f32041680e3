"""The checkpoint that an evaluation is asked of: whose encoder is measured."""

from pathlib import Path

import pytest
import torch

from carryover.configs import UserError, load
from carryover.core.backbones.importers import import_checkpoint
from carryover.core.data.shapes.write import write_shapes
from carryover.core.formats.canonical import load_canonical, save_canonical
from carryover.core.formats.said import Said
from carryover.transfer.results.record import ResultRecord
from carryover.transfer.tasks.base import equal_scores
from carryover.transfer.tasks.evaluate import canonical_of, evaluate
from tests.core.backbones.layouts import backbone_of, dino, network, prefixed


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dino") / "dino.pth"
    torch.save(dino()[0], path)
    return path


@pytest.mark.parametrize("encoder", ["student", "teacher"])
def test_the_encoder_asked_for_is_the_one_evaluated(theirs: Path, tmp_path: Path, encoder: str) -> None:
    state, metadata = load_canonical(canonical_of(theirs, tmp_path, encoder))
    expected, _ = import_checkpoint(theirs, encoder=encoder)
    assert metadata.encoder == encoder
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_the_two_encoders_are_different_networks(theirs: Path, tmp_path: Path) -> None:
    states = [load_canonical(canonical_of(theirs, tmp_path / e, e))[0] for e in ("student", "teacher")]
    assert not torch.equal(states[0]["conv1.weight"], states[1]["conv1.weight"])


def test_an_encoder_the_file_lacks_is_refused_and_nothing_is_written(theirs: Path, tmp_path: Path) -> None:
    canonical = tmp_path / "canonical.safetensors"
    save_canonical(canonical, *import_checkpoint(theirs, encoder="teacher"))
    out = tmp_path / "out"
    assert canonical_of(canonical, out, "teacher") == canonical == canonical_of(canonical, out)
    for path, encoder in ((canonical, "student"), (theirs, "module.third")):
        with pytest.raises(UserError, match=f"{path.name}.*{encoder}"):
            canonical_of(path, out, encoder)
    assert not out.exists()


def contents(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_result_keeps_the_weights_and_the_words_it_was_made_with(theirs: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "data", n_train=20, n_val=10, n_detection=4, seed=0)
    out = tmp_path / "out"
    said = [f"data.root={tmp_path / 'data/classification'}", "k=[5]", "temperatures=[0.1]"]
    images = ["image.size=32", "image.resize=32", "image.input_size=any", "workers=0", "precision=fp32"]
    config = load("transfer", "demo_knn", [*said, *images])
    record = evaluate(config, canonical_of(theirs, out, "teacher", Said(label="mine")), out)
    before = contents(out)
    with pytest.raises(
        UserError, match=r"out: holds an evaluation of other weights than those of .*dino\.pth"
    ):
        canonical_of(theirs, out, "student")
    with pytest.raises(UserError, match=r"described otherwise \(label: mine -> ours\)"):
        canonical_of(theirs, out, "teacher", Said(label="ours"))
    assert contents(out) == before
    for again in (None, Said(label="mine")):
        assert evaluate(config, canonical_of(theirs, out, "teacher", again), out) == record
    assert contents(out) == before


def test_a_key_that_was_wrong_is_mended_in_the_same_directory(theirs: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "data", n_train=20, n_val=10, n_detection=4, seed=0)
    checkpoint, out = canonical_of(theirs, tmp_path, "teacher"), tmp_path / "out"

    def knn(k: int) -> ResultRecord:
        said = [f"data.root={tmp_path / 'data/classification'}", f"k=[{k}]", "temperatures=[0.1]"]
        images = ["image.size=32", "image.resize=32", "image.input_size=any", "workers=0", "precision=fp32"]
        return evaluate(load("transfer", "demo_knn", [*said, *images]), checkpoint, out)

    with pytest.raises(UserError, match="k: 200 neighbors of 20 labeled images"):
        knn(200)
    assert not out.exists()
    assert [m.label for m in knn(3).metrics] == ["top1 k=3 T=0.1"]
    with pytest.raises(UserError, match="holds another result"):
        knn(4)


@pytest.mark.parametrize(
    ("prefix", "maker"), [("module.backbone.", "unknown maker"), ("", "torchvision names")]
)
def test_a_file_that_does_not_tell_its_method_is_called_by_its_own_name(
    tmp_path: Path, prefix: str, maker: str
) -> None:
    path = tmp_path / "my run (2).pth"
    torch.save({"model": prefixed(prefix, backbone_of(network(14))), "epoch": 100}, path)
    _, metadata = load_canonical(canonical_of(path, tmp_path / "out"))
    assert metadata.method.startswith(maker)
    assert metadata.label == "my-run-2"
    _, metadata = load_canonical(canonical_of(path, tmp_path / "other", None, Said(label="ours")))
    assert metadata.label == "ours"


def test_a_record_calls_data_of_ones_own_by_its_folder(theirs: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path / "data", n_train=20, n_val=10, n_detection=4, seed=0)
    (tmp_path / "data" / "classification").rename(tmp_path / "plants")
    said = [f"data.root={tmp_path / 'plants'}", "data={splits: null, test_split: val}", "k=[5]"]
    images = ["image.size=32", "image.resize=32", "image.input_size=any", "workers=0", "precision=fp32"]
    record = evaluate(load("transfer", "small_knn", [*said, *images]), theirs, tmp_path / "out")
    assert record.dataset == "plants"
    assert record.protocol is not None and record.protocol["data"]["name"] == "my data"


def test_equal_scores_are_told_with_what_they_mean() -> None:
    assert equal_scores((1,)).startswith(
        "1 guess has the same score as another class or image; the first class"
    )
    told = equal_scores((0, 1200))
    assert told.startswith("0 to 1,200 (by setting) guesses have") and told.endswith("on every machine")
