"""Calls of a pipeline's stages, by the short names stored in run directories."""

from carryover.slurm.calls import Call, register

BACKBONE = "backbone.safetensors"
STATE = "checkpoint.pt"


_IDENTITY = "carryover.transfer.pipeline.identity"
_UPGRADED = {"report": f"{_IDENTITY}:upgraded_report"}
_OF_V1 = {name: f"{_IDENTITY}:{name}_of_v1" for name in ("pretrain", "evaluate")}
for _name, _outputs in (
    ("make_shapes", ("data",)),
    ("pretrain", (BACKBONE,)),
    ("import_foreign", (BACKBONE,)),
    ("convert", ()),
    ("evaluate", ("result.json",)),
    ("report", ("../../../report/index.html",)),
):
    _target = f"carryover.transfer.pipeline.stages:{_name}"
    # What carryover 0.1 wrote stands last.
    _known_as = (_target, f"carryover.transfer.stages:{_name}", f"transfer.stages:{_name}")
    register(
        Call(
            _name,
            _target,
            identify=f"{_IDENTITY}:of_{_name}",
            outputs=_outputs,
            known_as=_known_as,
            upgrade=_UPGRADED.get(_name, ""),
            of_v1=_OF_V1.get(_name, ""),
        )
    )
