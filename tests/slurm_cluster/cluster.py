"""A real SLURM on this machine: one node, its own ports, its own state directory, stopped afterwards."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_ACCOUNTING_PROGRAMS = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")
_PATH = os.pathsep.join(["/usr/sbin", "/sbin", os.environ["PATH"]])

_SLURM_CONF = """
ClusterName=carryover
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={state}/munge/socket
CredType=cred/munge
SlurmctldPort={slurmctld_port}
SlurmdPort={slurmd_port}
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/slurmd.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/slurmd.log
StateSaveLocation={state}/slurmctld
SlurmdSpoolDir={state}/slurmd
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=500000,defer_batch=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
ReturnToService=2
MaxArraySize=101
{accounting}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=batch Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes={host} PriorityTier=10 PreemptMode=OFF
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
class Cluster:
    """A running cluster: point SLURM_CONF at `conf`, and every SLURM command speaks to it."""

    state: Path
    conf: Path
    cpus: int

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
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SUBMITIT_"))}
    return {**inherited, "PATH": _PATH, "SLURM_CONF": str(conf)}


@contextmanager
def running_cluster(accounting: bool, cpus: int = 32) -> Iterator[Cluster]:
    """Start munged, the database, slurmdbd, slurmctld and slurmd; stop them and remove their state after."""
    state = Path(tempfile.mkdtemp(prefix="carryover-slurm-"))
    state.chmod(0o755)
    started: list[subprocess.Popen[bytes]] = []
    try:
        conf = _configure(state, accounting, cpus)
        _start_munge(state, started)
        if accounting:
            _start_accounting(state, conf, started)
        cluster = Cluster(state, conf, cpus)
        _start(started, state, conf, "slurmctld", "-D", "-c")
        _wait(lambda: "UP" in cluster.command("scontrol", "ping"), "slurmctld")
        _start(started, state, conf, "slurmd", "-D", "-c")
        _wait(lambda: "idle" in cluster.command("sinfo", "-h", "-o", "%T"), "slurmd")
        yield cluster
        cluster.command("scancel", "--full", "--user=root")
        _wait(lambda: not cluster.command("squeue", "-h"), "the jobs' end", seconds=60)
    finally:
        for process in reversed(started):
            _stop(process)
        shutil.rmtree(state, ignore_errors=True)


def _configure(state: Path, accounting: bool, cpus: int) -> Path:
    ports = dict(zip(("slurmctld_port", "slurmd_port", "slurmdbd_port"), _free_ports(3), strict=True))
    values = {"state": state, "host": socket.gethostname().split(".")[0], "cpus": cpus, **ports}
    values["accounting"] = (
        _ACCOUNTING.format(**values) if accounting else "AccountingStorageType=accounting_storage/none"
    )
    for name in ("slurmctld", "slurmd"):
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


def _start_accounting(state: Path, conf: Path, started: list[subprocess.Popen[bytes]]) -> None:
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
    cluster = Cluster(state, conf, 0)
    _wait(lambda: bool(cluster.command("sacctmgr", "-n", "show", "stats")), "slurmdbd")
    cluster.command("sacctmgr", "-i", "add", "cluster", "carryover")


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
