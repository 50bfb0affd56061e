"""A real Slurm on this machine, for tests: its own key, ports and directory, no accounting."""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
PROGRAMS = {"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "sbatch": "slurm-wlm"}
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=5
KillWait=10
MessageTimeout=5
DefMemPerCPU=1000
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES State=UP
"""


def missing() -> str | None:
    """Why Slurm cannot be started here; None if it can."""
    names = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program, path=PATH)})
    return f"Slurm is not installed: apt-get install {' '.join(names)} (Debian's names)" if names else None


class Slurm:
    """A munged, a slurmctld and a slurmd.

    Attributes:
      environment: what its commands need beside the environment of this process.
    """

    def __init__(self, directory: Path):
        self.host = socket.gethostname()
        self.environment = {"SLURM_CONF": str(directory / "slurm.conf"), "PATH": PATH}
        self._directory = directory
        self._daemons: dict[str, subprocess.Popen] = {}
        for name in ("state", "spool", "munge"):
            (directory / name).mkdir(mode=0o755)
        key = directory / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            ports = one.getsockname()[1], other.getsockname()[1]
        conf = CONF.format(
            host=self.host, user=getpass.getuser(), directory=directory, controller=ports[0], daemon=ports[1]
        )
        (directory / "slurm.conf").write_text(conf)

    def start(self, name: str) -> None:
        """Starts "munged", "slurmctld" or "slurmd"."""
        munge = self._directory / "munge"
        files = [f"--{what}-file={munge / what}" for what in ("key", "pid", "log", "seed")]
        arguments = {
            "munged": ["--foreground", "--force", f"--socket={munge / 'socket'}", *files],
            "slurmctld": ["-D"],
            "slurmd": ["-D", "-N", self.host],
        }[name]
        program = shutil.which(name, path=PATH)
        assert program, missing()
        with open(self._directory / f"{name}.log", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                [program, *arguments], stdout=log, stderr=log, env={**os.environ, **self.environment}
            )

    def kill(self, name: str) -> None:
        """Kills one of them, as a machine that loses its power does; the jobs of a slurmd live on."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def command(self, *command: str) -> str:
        """What a command of Slurm prints."""
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def ready(self) -> bool:
        """Whether the node accepts jobs."""
        try:
            return self.command("sinfo", "--noheader", "--format=%T").strip() in ("idle", "mixed", "allocated")
        except AssertionError:
            return False

    def kill_jobs(self) -> None:
        """Kills all processes of the jobs, with what stands between them and slurmd."""
        ours = f"SLURM_CONF={self.environment['SLURM_CONF']}\0".encode()
        doomed = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                environment = (process / "environ").read_bytes()
                if ours in environment and b"\0SLURM_JOB_ID=" in environment:
                    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                    doomed.add(int(process.name))
                    if Path("/proc", parent, "comm").read_text().startswith("slurmstepd"):
                        doomed.add(int(parent))
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends everything, jobs too."""
        for name in ("slurmd", "slurmctld", "munged"):
            if name in self._daemons:
                self.kill(name)
        self.kill_jobs()


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Returns when the condition holds; fails with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.1)


@contextlib.contextmanager
def running() -> Iterator[Slurm]:
    """A Slurm that accepts jobs, with two to four processors."""
    # Not below the directory of a test: the path of a socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="slurm") as directory:
        slurm = Slurm(Path(directory))
        try:
            for name in ("munged", "slurmctld", "slurmd"):
                slurm.start(name)
            wait_for(slurm.ready, 60, "Slurm")
            yield slurm
        finally:
            slurm.stop()
