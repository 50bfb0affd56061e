"""One writer for a directory: the process that writes holds its lock, a file that names the holder.

The kernel releases the lock of a process that ends, however it ends. On a file system that several hosts share, its
locks may not reach from host to host. So the holder also touches the file every few seconds, and a lock left by
another host counts as held for as long as its file is touched.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = ["InUse", "Lock", "holder"]

NAME = ".lock"
BEAT = 5.0  # seconds between two touches
PATIENCE = 20.0  # seconds without a touch after which the lock of another host is free

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_taking = threading.Lock()  # while one is waited for, which may take long, the others are still touched
_guard = threading.Lock()  # of what follows, and of how often a lock is held
_held: dict[tuple[int, int], "Lock"] = {}  # of this process, by device and inode
_beating: list[threading.Thread] = []


class InUse(RuntimeError):  # noqa: N818 (reads better without Error)
    """Another process writes to the directory; the message names it."""


class Lock:
    """The lock of `directory`, held by this process from `take` until `release`, as often as it is taken."""

    def __init__(self, directory: Path, file: int):
        """Use `Lock.take`."""
        self.directory = directory
        self.process = os.getpid()
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        self._own = {"process": self.process, "host": socket.gethostname(), "since": since}
        self._file = file
        self._times = 0

    @classmethod
    def take(cls, directory: str | os.PathLike, *, inherited: bool = False, wait: float = 2.0) -> "Lock":
        """Takes the lock of a directory, or takes it once more where this process holds it.

        Args:
          directory: one that exists.
          inherited: whether programs that this process starts hold the lock too, until they end.
          wait: seconds to wait for a process that was just killed to end.

        Raises:
          InUse: another process holds it.
          OSError: its file cannot be written.
        """
        directory = Path(directory)
        path = directory / NAME
        with _taking:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                held = _held.get(_identity(file))
                if held is None or held.process != os.getpid():  # a fork has what its parent held
                    held = cls(directory, file)
                    held._acquire(path, wait)
                    file = None
                with _guard:
                    _held[_identity(held._file)] = held
                    held._times += 1
                if inherited:
                    os.set_inheritable(held._file, True)
                return held
            finally:
                if file is not None:
                    os.close(file)

    def release(self) -> None:
        """Releases the lock, once for every time that it was taken."""
        with _guard:
            self._times -= 1
            if self._times or self.process != os.getpid():
                return
            _held.pop(_identity(self._file), None)
            with contextlib.suppress(OSError):  # a disk that went away: the kernel releases the lock all the same
                os.ftruncate(self._file, 0)
            os.close(self._file)

    def check(self) -> None:
        """Raises InUse where another process has taken the lock, or the directory was removed or replaced."""
        path = self.directory / NAME
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(self._file)):
            raise InUse(f"{self.directory} was removed or replaced while process {self.process} wrote to it")
        holder = _parse(path.read_bytes())
        if holder and holder != self._own:
            raise InUse(_message(path, holder))

    def _acquire(self, path: Path, wait: float) -> None:
        local = _lock(self._file, path, wait)
        holder = _holder(self._file)
        # On this host a lock that can be taken is free, whatever its file still contains.
        if holder and not (local and holder.get("host") == socket.gethostname()) and _touched(path, holder):
            raise InUse(_message(path, holder))
        try:
            content = json.dumps(self._own).encode()
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, content, 0)
        except OSError as error:
            # On a full disk the holder is not recorded, but the lock is held.
            if not local or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(error.errno, error.strerror, str(path)) from error
        if not local:
            time.sleep(1)  # another may have found it free at the same moment: the later of the two holds it
            self.check()
        if not _beating or not _beating[0].is_alive():
            _beating[:] = [threading.Thread(target=_beat, name="seqjax-locks", daemon=True)]
            _beating[0].start()


def holder(directory: str | os.PathLike) -> dict[str, Any] | None:
    """Who holds the lock of a directory: "process", "host" and "since", as far as its file says; None if it is free.

    It is not taken, nothing is written, and nothing is waited for. So whether another host is alive, on a file system
    whose locks do not reach it, is judged by the clock of this one.

    Raises:
      OSError: the file cannot be read.
    """
    try:
        file = os.open(Path(directory) / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        local = True
        try:
            # Shared, so that two who look do not see each other; who takes the lock in this moment tries again.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder(file)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            local = False
        found = _holder(file)
        elsewhere = found and not (local and found.get("host") == socket.gethostname())
        return found if elsewhere and time.time() - os.fstat(file).st_mtime < PATIENCE else None
    finally:
        os.close(file)


def _identity(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_dev, status.st_ino


def _lock(file: int, path: Path, wait: float) -> bool:
    """Locks an open file; whether the file system can do that.

    Raises:
      InUse: another process has locked it.
    """
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                raise InUse(_message(path, _holder(file))) from None
            time.sleep(0.1)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return False
            raise OSError(error.errno, error.strerror, str(path)) from error


def _holder(file: int) -> dict[str, Any]:
    return _parse(os.pread(file, 4096, 0))


def _parse(content: bytes) -> dict[str, Any]:
    """The holder of the lock; {} if its file does not name one, or is cut off."""
    try:
        holder = json.loads(content)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _touched(path: Path, holder: dict[str, Any]) -> bool:
    """Whether the file is touched while this process waits."""
    print(
        f"{path} was left by process {holder.get('process')} on {holder.get('host')}: waiting {PATIENCE:.0f} s to see"
        " whether it is alive",
        file=sys.stderr,
    )
    first, end = path.stat().st_mtime_ns, time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(1, BEAT / 5))
        # Opened again each time: a network file system keeps the times of a file that is open.
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mtime_ns != first:
                return True
    return False


def _beat() -> None:
    while True:
        time.sleep(BEAT)
        with _guard:
            for lock in _held.values():
                with contextlib.suppress(OSError):
                    os.utime(lock._file)


def _message(path: Path, holder: dict[str, Any]) -> str:
    """The holder of the lock, and how to end it."""
    process, host, since = (holder.get(name, "?") for name in ("process", "host", "since"))
    by = f"process {process} on {host} since {since}" if holder else "another process"
    if holder.get("host", socket.gethostname()) != socket.gethostname():
        return f"{path.parent} is in use by {by}; wait until it ends, or end it there"
    found = _open_in(path)
    if holder and found and process not in found:
        by = f"what process {process} started and left behind"
    # A stopped process would not notice SIGTERM before it is continued.
    force = "-KILL " if any(map(_is_stopped, found)) else ""
    end = f": kill {force}{' '.join(map(str, found))}" if found else ""
    return f"{path.parent} is in use by {by}; wait until it ends, or end it{end}"


def _open_in(path: Path) -> list[int]:
    """The other processes of this host that have a file open, where /proc tells."""
    found, own = [], path.stat()
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # a process that has just ended, or belongs to somebody else
            if any(os.path.samestat(file.stat(), own) for file in (folder / "fd").iterdir() if file.exists()):
                found.append(int(folder.name))
    return sorted(found)


def _is_stopped(process: int) -> bool:
    try:
        # The name of the program, in parentheses, may hold anything.
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False
