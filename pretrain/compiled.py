"""`torch.compile` for the networks of a method: same names in its state, same results but for rounding."""

import os
import shutil
import sysconfig
from pathlib import Path

from torch import nn

from carryover.configs import UserError
from carryover.pretrain.heads import Encoder


def missing_to_compile() -> str | None:
    """Return in words what this machine lacks for `torch.compile` to make kernels; None: nothing."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"a C++ compiler: '{compiler}' is not on the PATH (CXX names another one)"
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").exists():
        return f"Python's headers: no Python.h in {headers} (Debian and Ubuntu: python3-dev)"
    return None


def compile_encoders(method: nn.Module) -> None:
    """Have the encoders of `method`, online and momentum, compiled when they are first called.

    In place: names of parameters and states stay as they are. Every size of views is compiled by itself, and
    what calls a backbone past its encoder (k-NN while pretraining) is not compiled.

    Raises
    ------
    UserError
        When there is nothing on this machine to compile with.
    """
    if (missing := missing_to_compile()) is not None:
        raise UserError(f"compile: true needs {missing}; or set compile=false")
    for module in method.modules():
        if isinstance(module, Encoder):
            module.compile(dynamic=False)
