"""A cluster of two virtual nodes on this machine: Slurm's own daemons, with nothing outside of one folder.

tools/virtual_slurm.py is its command line. Nodes are called by loopback addresses, so that a node's name leads to it,
as it does on a real cluster. Whoever starts it is its only user; it needs no root.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODES = ("127.0.0.1", "127.0.0.2")
CPUS = 2
_DAEMONS = ("munged", "slurmctld", "slurmd")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_SECONDS = 300.0
_POLITE_SECONDS = 10.0
_LONGEST_PATH = 80

_CONFIGURATION = """\
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# Nothing of the machine is managed: processes are found by their parents, nothing is bound or limited.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=1
KillWait=5
ReturnToService=2
NodeName={nodes} NodeHostname={host} Port={node_ports} CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class ClusterError(Exception):
    """The cluster does not do what it should; `str()` says what."""


def missing_programs() -> list[str]:
    """What has to be installed first, from the packages slurm-wlm and munge."""
    return [name for name in (*_DAEMONS, "sbatch", "srun") if shutil.which(name, path=_PATH) is None]


class VirtualCluster:
    """The cluster of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.configuration = self.folder / "slurm.conf"
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """With it, Slurm's commands speak to this cluster."""
        return {"SLURM_CONF": str(self.configuration)}

    def start(self) -> None:
        """Start the daemons, and wait until the nodes are ready for jobs.

        Raises:
            ClusterError: Slurm is not installed, or a daemon does not start.
        """
        if missing := missing_programs():
            raise ClusterError(f"not found: {', '.join(missing)}; Debian has them in slurm-wlm and munge")
        # slurm.conf takes no space in a path, and a socket's path has a longest length.
        if " " in str(self.folder) or len(str(self.folder)) > _LONGEST_PATH:
            raise ClusterError(f"{self.folder} has a space in it, or is too long: choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir(exist_ok=True)
        self._write_configuration()
        self._start_munge()
        self._daemon("slurmctld", "slurmctld", "-D", "-i")
        for node in NODES:
            self.start_node(node)
        self._wait_for(lambda: self.states() == dict.fromkeys(NODES, "idle"), "the nodes are not ready")

    def start_node(self, node: str) -> None:
        """Start a node, also one that has crashed."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._daemon(f"slurmd-{node}", "slurmd", "-D", "-N", node)

    def crash(self, node: str) -> None:
        """Kill all that runs on a node, as if its power were cut."""
        tasks = list(self.processes(f"SLURMD_NODENAME={node}", "SLURM_PROCID="))
        parents = {_parent(task) for task in tasks}
        slurmstepds = [process for process in parents if _name(process) == "slurmstepd"]
        self._children.pop(f"slurmd-{node}", None)
        for process in [self._process(f"slurmd-{node}"), *slurmstepds, *tasks]:
            if process is not None:
                _kill(process, signal.SIGKILL)

    def states(self) -> dict[str, str]:
        """Node -> Slurm's word for its state; empty while the controller does not answer."""
        done = self.run("sinfo", "--noheader", "--Node", "--format=%N %t")
        return dict(line.split() for line in done.stdout.splitlines())

    def processes(self, *variables: str) -> Iterator[int]:
        """What Slurm has started here with these in its environment, each `NAME=` or `NAME=VALUE`."""
        wanted = [f"SLURM_CONF={self.configuration}", *variables]
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # it has ended, or is somebody else's
                continue
            if all(any(_is(entry, variable) for entry in environment) for variable in wanted):
                yield int(folder.name)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=_SECONDS)

    def stop(self) -> None:
        """End every job and every daemon; the folder and its logs stay."""
        if self._process("slurmctld") is not None:
            self.run("scancel", f"--user={getpass.getuser()}")
        self._children.clear()
        for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munged"):
            process = self._process(name)
            if process is not None:
                _end(process)
        for process in self.processes():
            if _name(process) == "slurmstepd":
                _end(process)
        for task in self.processes("SLURM_PROCID="):
            _end(task)

    def _write_configuration(self) -> None:
        controller_port, *node_ports = _free_ports(1 + len(NODES))
        self.configuration.write_text(
            _CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                user=getpass.getuser(),
                folder=self.folder,
                controller_port=controller_port,
                nodes=",".join(NODES),
                node_ports=",".join(map(str, node_ports)),
                cpus=CPUS,
            ),
            encoding="utf-8",
        )

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(1024))
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        paths = [f"--{option}={self.folder / name}" for option, name in files.items()]
        # Forced, because the folder may be one that nobody else can enter.
        self._daemon("munged", "munged", "--foreground", "--force", *paths)
        self._wait_for((self.folder / "munge.socket").exists, "munged does not start")

    def _daemon(self, name: str, program: str, *arguments: str) -> None:
        executable = shutil.which(program, path=_PATH)
        assert executable is not None, f"{program} was there a moment ago"
        with (self.folder / f"{name}.out").open("ab") as output:
            child = subprocess.Popen(
                [executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        self._children[name] = child
        (self.folder / f"{name}.process").write_text(str(child.pid))

    def _process(self, name: str) -> int | None:
        """The daemon of a name, where it lives."""
        file = self.folder / f"{name}.process"
        if not file.is_file():
            return None
        process = int(file.read_text())
        return process if _lives(process) and _name(process) == name.partition("-")[0] else None

    def _wait_for(self, is_so: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while not is_so():
            ended = [name for name, child in self._children.items() if child.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise ClusterError(f"{otherwise}{_names(ended)}; see the logs in {self.folder}")
            time.sleep(0.05)


def _is(entry: str, variable: str) -> bool:
    return entry.startswith(variable) if variable.endswith("=") else entry == variable


def _names(ended: list[str]) -> str:
    return f": {', '.join(ended)} has ended" if ended else ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def _name(process: int) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0


def _end(process: int) -> None:
    """Politely, and otherwise after a while."""
    _kill(process, signal.SIGTERM)
    deadline = time.monotonic() + _POLITE_SECONDS
    while _lives(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    _kill(process, signal.SIGKILL)


def _kill(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)
