"""A SLURM cluster of two nodes on this machine, all of it in one folder.

It needs root and Debian's `slurmctld slurmd slurm-client munge`; with accounting, `slurmdbd mariadb-server` too. No
systemd and no cgroups; another SLURM on the machine is left alone. The nodes claim more cores than there may be.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
ACCOUNTING = ("slurmdbd", "sacctmgr", "mariadbd", "mariadb-install-db")
NODES = ("node1", "node2")
CPUS = 2
"""Of a node."""
KILL_WAIT = 30
"""Seconds between SIGTERM and SIGKILL: SLURM's default."""
SECONDS = 60
"""For a daemon to come up or to end."""

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={there}/munge.socket,cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={there}/state
SlurmdSpoolDir={there}/spool-%n
SlurmctldPidFile={there}/slurmctld.pid
SlurmdPidFile={there}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=100000,bf_interval=1
KillWait={kill_wait}
ReturnToService=2
MpiDefault=none
SlurmdParameters=config_overrides
{accounting}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

ACCOUNTED = """\
slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[1]}
AccountingStoragePass={there}/munge.socket"""

NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN"

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={there}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[1]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[2]}
StorageUser=root
PidFile={there}/slurmdbd.pid
"""


def why_impossible(*, accounting: bool = False) -> str:
    """Why this machine cannot run the cluster; empty if it can."""
    if os.geteuid() != 0:
        return "needs root, for SLURM's daemons"
    missing = [name for name in PROGRAMS + ACCOUNTING * accounting if shutil.which(name) is None]
    return f"needs SLURM: {', '.join(missing)} not found" if missing else ""


class Cluster:
    """Runs while entered; `names` in the environment point SLURM's commands to it."""

    def __init__(self, folder: Path, *, accounting: bool = False) -> None:
        self.folder, self.accounting = folder, accounting
        self.names = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._environment = os.environ | self.names
        self._daemons = ExitStack()

    def __enter__(self) -> Cluster:
        with self._daemons:  # what has started ends with it, if something else does not
            self._start_munge()
            self._configure()
            if self.accounting:
                self._start_accounting()
            self._start_controller()
            for name in NODES:
                self._start("slurmd", "-D", "-N", name)
            self._wait(lambda: self.ask("sinfo", "--noheader", "--format=%t %D") == f"idle {len(NODES)}")
            self._daemons = self._daemons.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.ask("scancel", "--user=root", "--signal=KILL")
        self._daemons.close()
        self._end_steps()

    def _end_steps(self) -> None:
        """Steps outlive slurmd, and wait for a controller that was away when they ended."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.names["SLURM_CONF"].encode() in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)

    def ask(self, *command: str) -> str:
        """What a command of SLURM says, whether it succeeds or not."""
        return subprocess.run(command, env=self._environment, capture_output=True, text=True).stdout.strip()

    @contextmanager
    def without_controller(self) -> Iterator[None]:
        """While entered, slurmctld is down and nobody answers."""
        _end(self._controller)
        yield
        self._start_controller()

    def _start_controller(self) -> None:
        self._controller = self._start("slurmctld", "-D")
        self._wait(lambda: " is UP" in self.ask("scontrol", "ping"))

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        own = [f"--{what}-file={self.folder}/munge.{what}" for what in ("key", "log", "pid", "seed")]
        socket_file = self.folder / "munge.socket"
        self._start("munged", "--foreground", "--force", f"--socket={socket_file}", *own)
        self._wait(socket_file.exists)

    def _configure(self) -> None:
        host, ports = socket.gethostname().split(".")[0], _free_ports(3 + len(NODES))
        names = zip(NODES, ports[3:], strict=True)
        nodes = "\n".join(NODE.format(name=name, host=host, port=port, cpus=CPUS) for name, port in names)
        facts = {"there": self.folder, "host": host, "ports": ports, "kill_wait": KILL_WAIT, "nodes": nodes}
        keeper = ACCOUNTED.format(**facts)
        facts["accounting"] = "AccountingStorageType=accounting_storage/" + (keeper if self.accounting else "none")
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**facts))
        database = self.folder / "slurmdbd.conf"
        database.write_text(SLURMDBD_CONF.format(**facts))
        database.chmod(0o600)
        self._database_port = str(ports[2])
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()

    def _start_accounting(self) -> None:
        data = self.folder / "mariadb"
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root"]
        subprocess.run(install, check=True, capture_output=True)
        places = {"datadir": data, "socket": data / "socket", "pid-file": data / "pid", "port": self._database_port}
        own = [f"--{name}={value}" for name, value in places.items()]
        trusting = ["--skip-grant-tables", "--bind-address=127.0.0.1", "--user=root"]
        self._start("mariadbd", "--no-defaults", *own, *trusting)
        self._wait((data / "pid").exists)
        self._start("slurmdbd", "-D")
        self._wait(lambda: self.ask("sacctmgr", "--noheader", "list", "user").startswith("root"))
        self.ask("sacctmgr", "--immediate", "add", "cluster", "test")

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{command[0]}-{command[-1]}.out".replace("/", "_")).open("wb") as log:
            daemon = subprocess.Popen(command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)
        self._daemons.callback(_end, daemon)
        return daemon

    def _wait(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not happened():
            if time.monotonic() > deadline:
                said = [f"{log.name}: {log.read_text(errors='replace')[-500:]}" for log in self.folder.glob("*.out")]
                raise RuntimeError("the cluster does not come up\n" + "\n".join(said))
            time.sleep(0.2)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(SECONDS)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_ports(count: int) -> list[int]:
    """That nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
