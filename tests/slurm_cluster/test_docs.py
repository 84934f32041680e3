"""The commands of README.md and docs/slurm.md that need a cluster, on one, with a pipeline of three jobs."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from carryover.transfer.cli.main import app
from tests.docs_commands import ON_A_CLUSTER, carryover_lines
from tests.docs_sandbox import write_sandbox
from tests.slurm_cluster.cluster import Cluster
from tests.slurm_cluster.waiting import at_rest

PIPELINE = """
checkpoints: [{path: moco.pth.tar, label: moco-800}]
evaluate:
  - {recipe: small_knn, overrides: [data.root=data/plants, image.size=32, image.resize=32, workers=0]}
"""


@pytest.mark.slow
def test_the_commands_of_the_documentation_run(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sandbox(tmp_path)
    (tmp_path / "my_pipeline.yaml").write_text(PIPELINE, encoding="utf-8")
    (tmp_path / "mycluster.yaml").write_text("base: default\n", encoding="utf-8")
    lines = [line for _, line in carryover_lines() if ON_A_CLUSTER.search(line)]
    assert len(lines) == 8
    lines.sort(
        key=lambda line: "sqrtkl" in line
    )  # README.md first: its pipeline is the one that is submitted
    for line in lines:
        # A pipeline of a paper takes days; docs/slurm.md's commands are given the small one.
        line = line.replace("run sqrtkl_tables_2_4_5", "run ./my_pipeline.yaml")
        line = line.replace("runs/sqrtkl_tables_2_4_5", "runs/my_pipeline").replace("STAGE", "report")
        done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
        if " run " in line:
            assert at_rest(cluster, tmp_path / "runs" / "my_pipeline").succeeded, line
    assert (tmp_path / "runs" / "my_pipeline" / "report" / "index.html").is_file()
