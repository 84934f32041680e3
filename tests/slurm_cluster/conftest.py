"""The real cluster of these tests: started once, and spoken to through SLURM_CONF."""

from collections.abc import Iterator

import pytest

from tests.slurm_cluster.cluster import Cluster, Kind, running_cluster, why_unavailable


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a real SLURM."""
    for item in items:
        if "slurm_cluster" in item.nodeid:
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def cluster_with_accounting() -> Iterator[Cluster]:
    """A cluster with slurmdbd and a database."""
    reason = why_unavailable(accounting=True)
    if reason:
        pytest.skip(reason)
    with running_cluster(Kind()) as started:
        yield started


@pytest.fixture(scope="session")
def cluster_without_accounting() -> Iterator[Cluster]:
    """A second cluster: two nodes, sacct has nothing to ask, preempted jobs have no time but KillWait."""
    reason = why_unavailable(accounting=False)
    if reason:
        pytest.skip(reason)
    kind = Kind(
        name="other", accounting=False, nodes=2, cpus=16, kill_wait=8, grace_time=0, user_signal=False
    )
    with running_cluster(kind) as started:
        yield started


@pytest.fixture
def cluster(cluster_with_accounting: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, for this test's own commands too."""
    monkeypatch.setenv("SLURM_CONF", str(cluster_with_accounting.conf))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return cluster_with_accounting


@pytest.fixture
def bare_cluster(cluster_without_accounting: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster without accounting, for this test's own commands too."""
    monkeypatch.setenv("SLURM_CONF", str(cluster_without_accounting.conf))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return cluster_without_accounting
