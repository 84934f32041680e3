"""A real SLURM on this machine: its own nodes, ports and state directory, stopped afterwards."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_ACCOUNTING_PROGRAMS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")
_PATH = os.pathsep.join(["/usr/sbin", "/sbin", os.environ["PATH"]])

_STEERING = re.compile("SLURM_|SBATCH_|SQUEUE_|SUBMITIT_")

_SLURM_CONF = """
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={state}/munge/socket
CredType=cred/munge
SlurmctldPort={slurmctld_port}
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd-%n.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd-%n.log
StateSaveLocation={state}/slurmctld
SlurmdSpoolDir={state}/slurmd-%n
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
{user_signal}
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=500000,defer_batch=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={kill_wait}
ReturnToService=2
MaxArraySize=101
{accounting}
{nodes}
PartitionName=batch Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_time}
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""

_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass={state}/munge/socket
AccountingStoragePort={slurmdbd_port}
"""

_SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={state}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser=root
LogFile={state}/slurmdbd.log
PidFile={state}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageUser=root
StorageLoc=slurm_acct
"""


@dataclass(frozen=True)
class Kind:
    """What a cluster is like: `cpus` a node; without grace, preempted jobs have `kill_wait` seconds."""

    name: str = "carryover"
    accounting: bool = True
    nodes: int = 1
    cpus: int = 32
    kill_wait: int = 5
    grace_time: int = 30
    user_signal: bool = True


@dataclass(frozen=True)
class Cluster:
    """A running cluster: point SLURM_CONF at `conf`, and every SLURM command speaks to it."""

    state: Path
    conf: Path
    kind: Kind
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def cpus(self) -> int:
        """CPUs of a node."""
        return self.kind.cpus

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes."""
        return _node_names(self.kind)

    def stop_controller(self) -> None:
        """Stop slurmctld; jobs go on."""
        controller = next(p for p in self.started if _program(p) == "slurmctld" and p.poll() is None)
        _stop(controller)

    def start_controller(self) -> None:
        """Start slurmctld again, with the state that the former one left."""
        _start(self.started, self.state, self.conf, "slurmctld", "-D")
        _wait(lambda: "UP" in self.command("scontrol", "ping"), "slurmctld")
        # Nodes are unknown to it until they register, which they would do in their own time.
        self.command("scontrol", "reconfigure")
        _wait(lambda: "unk" not in self.command("sinfo", "-N", "-h", "-o", "%t"), "the nodes")

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's slurmd; its jobs go on."""
        slurmd = next(
            p for p in self.started if _words(p)[0] == "slurmd" and _words(p)[-1] == node and p.poll() is None
        )
        slurmd.kill()
        slurmd.wait()

    def start_slurmd(self, node: str) -> None:
        """Start a node's slurmd again, with the state that the former one left."""
        _start(self.started, self.state, self.conf, "slurmd", "-D", "-N", node)

    def command(self, *words: str) -> str:
        """Run one of SLURM's commands against this cluster and return what it printed."""
        done = subprocess.run(words, capture_output=True, text=True, env=environment(self.conf), timeout=60)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout


def why_unavailable(accounting: bool) -> str:
    """Say in words why no cluster can be started here, or "" when one can."""
    if os.geteuid() != 0:
        return "a real SLURM is started as root only"
    wanted = _PROGRAMS + (_ACCOUNTING_PROGRAMS if accounting else ())
    missing = [name for name in wanted if shutil.which(name, path=_PATH) is None]
    if missing:
        packages = "slurm-wlm slurmdbd munge mariadb-server"
        return f"{', '.join(missing)} not found (Debian packages {packages})"
    return ""


def environment(conf: Path) -> dict[str, str]:
    """Return the environment in which SLURM's commands find the cluster of `conf`."""
    inherited = {k: v for k, v in os.environ.items() if not _STEERING.match(k)}
    return {**inherited, "PATH": _PATH, "SLURM_CONF": str(conf)}


@contextmanager
def running_cluster(kind: Kind) -> Iterator[Cluster]:
    """Start munged, the database, slurmdbd, slurmctld and slurmds; stop them and remove their state after."""
    state = Path(tempfile.mkdtemp(prefix="carryover-slurm-"))
    state.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []
    try:
        conf = _configure(state, kind)
        _start_munge(state, started)
        cluster = Cluster(state, conf, kind, started)
        if kind.accounting:
            _start_accounting(cluster, started)
        _start(started, state, conf, "slurmctld", "-D", "-c")
        _wait(lambda: "UP" in cluster.command("scontrol", "ping"), "slurmctld")
        for node in cluster.nodes:
            _start(started, state, conf, "slurmd", "-D", "-c", "-N", node)
        # Every node is listed once for each of the two partitions.
        idle = ["idle"] * 2 * kind.nodes
        _wait(lambda: cluster.command("sinfo", "-N", "-h", "-o", "%T").split() == idle, "slurmd")
        yield cluster
        cluster.command("scancel", "--full", "--user=root")
        _wait(lambda: not cluster.command("squeue", "-h"), "the jobs' end", seconds=60)
    finally:
        for process in reversed(started):
            _stop(process)
        shutil.rmtree(state, ignore_errors=True)


def _node_names(kind: Kind) -> list[str]:
    host = socket.gethostname().split(".")[0]
    return [host] if kind.nodes == 1 else [f"n{i}" for i in range(1, kind.nodes + 1)]


def _configure(state: Path, kind: Kind) -> Path:
    slurmctld_port, slurmdbd_port, *slurmd_ports = _free_ports(2 + kind.nodes)
    host = socket.gethostname().split(".")[0]
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={kind.cpus} State=UNKNOWN"
        for name, port in zip(_node_names(kind), slurmd_ports, strict=True)
    ]
    values = {
        **asdict(kind),
        "state": state,
        "host": host,
        "slurmctld_port": slurmctld_port,
        "slurmdbd_port": slurmdbd_port,
        "nodes": "\n".join(nodes),
        "user_signal": "SlurmctldParameters=preempt_send_user_signal" if kind.user_signal else "",
    }
    values["accounting"] = (
        _ACCOUNTING.format(**values) if kind.accounting else "AccountingStorageType=accounting_storage/none"
    )
    for name in ("slurmctld", *(f"slurmd-{node}" for node in _node_names(kind))):
        (state / name).mkdir()
    conf = state / "slurm.conf"
    conf.write_text(_SLURM_CONF.format(**values))
    dbd = state / "slurmdbd.conf"
    dbd.write_text(_SLURMDBD_CONF.format(**values))
    dbd.chmod(0o600)
    return conf


def _start_munge(state: Path, started: list[subprocess.Popen[bytes]]) -> None:
    home = state / "munge"
    home.mkdir()
    key = home / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={home / name}" for option, name in files.items()]
    _start(started, state, None, "munged", "--foreground", "--force", *options)
    _wait(lambda: (home / "socket").exists(), "munged")


def _start_accounting(cluster: Cluster, started: list[subprocess.Popen[bytes]]) -> None:
    state, conf = cluster.state, cluster.conf
    data, sock = state / "mariadb", state / "mariadb.sock"
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root"]
    install += ["--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(install, check=True, capture_output=True, env=environment(conf))
    options = [f"--datadir={data}", f"--socket={sock}", "--skip-networking", "--user=root"]
    options += [
        "--innodb-buffer-pool-size=64M",
        "--innodb-log-file-size=32M",
        f"--pid-file={state}/mariadb.pid",
    ]
    _start(started, state, None, "mariadbd", "--no-defaults", *options)
    _wait(sock.exists, "mariadbd")
    _start(started, state, conf, "slurmdbd", "-D", MYSQL_UNIX_PORT=str(sock))
    _wait(lambda: bool(cluster.command("sacctmgr", "-n", "show", "stats")), "slurmdbd")
    cluster.command("sacctmgr", "-i", "add", "cluster", cluster.kind.name)


def _start(
    started: list[subprocess.Popen[bytes]], state: Path, conf: Path | None, *words: str, **extra: str
) -> None:
    with (state / f"{words[0]}.out").open("wb") as out:
        process = subprocess.Popen(
            words,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**environment(conf or state / "slurm.conf"), **extra},
            start_new_session=True,
        )
    started.append(process)


def _program(process: subprocess.Popen[bytes]) -> str:
    return _words(process)[0]


def _words(process: subprocess.Popen[bytes]) -> tuple[str, ...]:
    assert isinstance(process.args, tuple)
    return tuple(map(str, process.args))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(ready: Callable[[], bool], what: str, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    problem = ""
    while time.monotonic() < end:
        try:
            if ready():
                return
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            problem = f": {error}"
        time.sleep(0.2)
    raise RuntimeError(f"waited {seconds:.0f} s for {what}{problem}")


def _free_ports(number: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports
