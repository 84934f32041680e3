"""mmsegmentation over mmcv-lite: importable, and honest about kernels that are not there."""

import importlib.util
import sys
from pathlib import Path

import pytest

from carryover.transfer.convert import convert
from carryover.transfer.convert.mmcv_stub import install
from tests.transfer.convert.backbones import write_backbone

pytestmark = pytest.mark.mmseg


def test_kernel_that_mmcv_lite_lacks_is_an_error_only_when_called() -> None:
    install()
    install()
    import mmcv.ops

    if "mmcv._ext" in sys.modules and sys.modules["mmcv._ext"].__spec__.loader is not None:  # type: ignore[union-attr]
        pytest.skip("mmcv has its compiled operators here")
    assert importlib.util.find_spec("mmcv._ext") is not None
    assert callable(mmcv.ops.point_sample)
    with pytest.raises(RuntimeError, match="compiled kernel 'nms', which mmcv-lite does not have"):
        sys.modules["mmcv._ext"].nms()


def test_settings_in_the_receipt_build_the_backbone_that_fits(tmp_path: Path) -> None:
    install()
    import mmseg.models  # noqa: F401 (registers ResNet)
    from mmseg.registry import MODELS

    receipt = convert(write_backbone(tmp_path / "b.safetensors"), "mmseg", tmp_path / "b.pth")
    model = MODELS.build(dict(receipt.settings))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == {tensor.name: tensor.shape for tensor in receipt.tensors}
    assert receipt.settings["type"] == "ResNet"
    for file in tmp_path.glob("b.*"):
        file.unlink()
