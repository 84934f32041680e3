"""The key of every recipe that says what its work runs on (torch-free)."""

from typing import Annotated

from pydantic import Field

from carryover.configs import Incidental

DeviceName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(:\d+)?$"), Incidental]
"""auto, cpu, cuda, xpu, mps or another backend of torch; NAME:INDEX for one of several of its devices.

auto is the accelerator that torch finds, and the CPU where there is none or it is mps.
"""
