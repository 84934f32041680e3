"""The second device, for the tests of this folder."""

from collections.abc import Iterator

import pytest
import torch

# Registered before any test runs: torch counts the devices that gradients flow on once, at the first of them.
from tests.second_device.backend import second_device


@pytest.fixture
def second() -> Iterator[torch.device]:
    """Have the device there for one test; without it "auto" is what it was."""
    with second_device() as device:
        yield device
