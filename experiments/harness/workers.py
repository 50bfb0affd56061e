"""The processes of a sweep: started, watched and ended here, and found again where their launcher was killed.

Every wait ends: a process that ignores SIGTERM is killed, and one that survives that is reported.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        """Raises KeyboardInterrupt or SystemExit if a signal came, as it would have without this list."""
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
    ignored after the block, so that none cuts short the last messages and files.
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
    """A process in a session of its own, so that Ctrl-C reaches its launcher alone, and its children end with it."""

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
        """Sends a signal to the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def ended(self) -> int | None:
        """Returns the exit code, minus the signal that killed it, or None; reports once if the process is stopped."""
        if self._process.returncode is not None:
            return self._process.returncode
        # Left a zombie, since its number must be its own until the rest of its group was killed.
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        stopped = status is not None and status.si_code == os.CLD_STOPPED
        if stopped and not self._stopped:
            print(f"{self.name} is stopped; it resumes after: kill -CONT {self.pid}", file=sys.stderr)
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
    reported = False
    while workers and time.monotonic() < start + GRACE and not stops.insisted:
        time.sleep(0.05)
        workers = [worker for worker in workers if worker.ended() is None]
        if workers and not reported and time.monotonic() > start + 2:
            reported = True
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
