"""The processes of a sweep: started, watched and ended here, and found again where their launcher was killed.

Every wait ends: a process that does not heed SIGTERM is killed, and one that outlives even that is named.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

# Seconds between SIGTERM and SIGKILL: a run saves its state when the compiled call that it is in has ended.
GRACE = 30.0
# Seconds after SIGKILL, for a machine to write off the memory of a process.
DEATH = 10.0


class Stops(list[int]):
    """The signals that asked this process to stop, oldest first."""

    insisted = False  # whether one came more than a second after the first; a storm of them is one request

    def check(self) -> None:
        """Raises KeyboardInterrupt or SystemExit where a signal came, as it would have by itself."""
        if self:
            raise KeyboardInterrupt if self[0] == signal.SIGINT else SystemExit(128 + self[0])

    def pause(self, seconds: float) -> None:
        """Sleeps, until a signal comes."""
        end = time.monotonic() + seconds
        while not self and time.monotonic() < end:
            time.sleep(min(0.05, seconds))


@contextlib.contextmanager
def stop_requests() -> Iterator[Stops]:
    """SIGINT, SIGTERM and SIGHUP become entries of the yielded list, and so break off nothing that is being started.

    Those that this process ignores (nohup) stay ignored. Where one came, the process is about to end: all of them are
    ignored after the block, so that none cuts short what is still said and written.
    """
    stops, first = Stops(), 0.0

    def receive(number: int, _: Any) -> None:
        nonlocal first
        first = first or time.monotonic()
        stops.append(number)
        stops.insisted = stops.insisted or time.monotonic() > first + 1

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield stops
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if stops else handler)


class Worker:
    """A process in a session of its own, so that Ctrl-C reaches its launcher alone, and what it starts ends with it."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]):
        """Starts the process.

        Raises:
            OSError: it could not be started.
        """
        self.name = name
        self._stopped = False
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                # The lock of the sweep directory goes with it.
                close_fds=False,
            )
        self.pid = self._process.pid

    def signal(self, number: int) -> None:
        """Sends a signal to the process and to what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def ended(self) -> int | None:
        """Returns the exit code, minus the signal that killed it, or None; says once where the process is stopped."""
        if self._process.returncode is not None:
            return self._process.returncode
        # Left a zombie, since its number must be its own until the rest of its group was killed.
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        stopped = status is not None and status.si_code == os.CLD_STOPPED
        if stopped and not self._stopped:
            print(f"{self.name} is stopped; it goes on after: kill -CONT {self.pid}", file=sys.stderr)
        self._stopped = stopped
        if status is None or stopped:
            return None
        self.signal(signal.SIGKILL)
        return self._process.wait()


def end(workers: Iterable[Worker], stops: Stops) -> None:
    """Ends processes: SIGTERM, and SIGKILL after GRACE seconds, or when asked to stop a second time."""
    workers = list(workers)
    for number in (signal.SIGTERM, signal.SIGCONT):  # one that is stopped heeds the first after the second
        for worker in workers:
            worker.signal(number)
    start = time.monotonic()
    said = False
    while workers and time.monotonic() < start + GRACE and not stops.insisted:
        time.sleep(0.05)
        workers = [worker for worker in workers if worker.ended() is None]
        if workers and not said and time.monotonic() > start + 2:
            said = True
            names = ", ".join(worker.name for worker in workers)
            print(f"waiting up to {GRACE:.0f} s for {names}; a further signal kills what runs", file=sys.stderr)
    for worker in workers:
        print(f"{worker.name} (pid {worker.pid}) did not end after SIGTERM and is killed", file=sys.stderr)
        worker.signal(signal.SIGKILL)
    start = time.monotonic()
    while workers and time.monotonic() < start + DEATH:
        time.sleep(0.05)
        workers = [worker for worker in workers if worker.ended() is None]
    for worker in workers:
        print(f"{worker.name} (pid {worker.pid}) does not even end after SIGKILL", file=sys.stderr)


class InUse(Exception):  # noqa: N818 (the name says it)
    """A sweep directory that others work in, or that cannot be locked; the message says who, and what helps."""


@contextlib.contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Locks a sweep directory, for this process and the workers that it starts, until the last of them has ended.

    Raises:
        InUse: others hold it.
    """
    path = directory / ".lock"
    with open(path, "a+") as lock:
        # Processes that were just killed may need a moment.
        deadline = time.monotonic() + 2
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InUse(_in_use(path)) from None
                time.sleep(0.1)
            except OSError as error:
                raise InUse(
                    f"{path} cannot be locked ({error.strerror}); choose a --workdir on a file system with locks"
                ) from None
        lock.truncate(0)
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        lock.write(json.dumps({**owner, "since": datetime.now().isoformat(timespec="seconds")}) + "\n")
        lock.flush()
        os.set_inheritable(lock.fileno(), True)
        yield


def _in_use(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        launcher, known = owner["pid"], f"launcher {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # of an older version, or just being written
        launcher, known = None, "an unknown launcher"
    found = holders(path)
    if launcher in found or not found:
        return f"another launcher works in {path.parent}: {known}"
    runs = [f"{name} (pid {pid}{', stopped' if _is_stopped(pid) else ''})" for pid, name in found.items()]
    # A stopped process would not notice SIGTERM before it goes on.
    force = "-KILL " if any(map(_is_stopped, found)) else ""
    pids = " ".join(map(str, found))
    return (
        f"runs that a launcher left behind, work in {path.parent}: {', '.join(runs)};"
        f" wait until they have ended, or end them: kill {force}{pids}"
    )


def holders(path: Path) -> dict[int, str]:
    """Returns the other processes that have the file open, by number, each with the name of its run or its program.

    Empty where they are on another machine, belong to another user, or /proc does not exist.
    """
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is not ours to see
            if int(process.name) == os.getpid():
                continue
            if str(path.resolve()) in {os.readlink(fd) for fd in (process / "fd").iterdir()}:
                arguments = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                prefix = f"--workdir={path.parent.absolute()}{os.sep}"
                runs = [a.removeprefix(prefix) for a in arguments if a.startswith(prefix)]
                found[int(process.name)] = (runs or arguments)[0]
    return dict(sorted(found.items()))


def _is_stopped(pid: int) -> bool:
    try:
        # The name of the program, in parentheses, may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False
