"""How a command ends: with its exit code and, where something stopped it, with one line on stderr.

It imports nothing slow: what the commands import after it takes seconds, and Ctrl-C must be handled during them too.
"""

import codecs
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED = "interrupted; the same command resumes"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_CURES = {
    errno.ENOSPC: "make room; the same command resumes",
    errno.EDQUOT: "make room; the same command resumes",
    errno.EFBIG: "raise the limit on the size of files; the same command resumes",
    errno.EROFS: "choose another directory with --workdir",
    errno.EACCES: "choose another directory with --workdir",
    errno.EPERM: "choose another directory with --workdir",
    errno.ENOTDIR: "a part of the path is no directory; choose another with --workdir",
    errno.EEXIST: "it is no directory; choose another with --workdir",
    errno.EISDIR: "move it away; the same command resumes",
    errno.ELOOP: "choose another directory with --workdir",
    errno.ENAMETOOLONG: "choose a shorter --workdir",
    errno.ENOENT: "if it was removed, the same command starts again",
}
_ASCII = {"─": "-", "±": "+-", "…": "..."}


class Stopped(SystemExit):
    """SIGINT or SIGTERM arrived; the code is 128 and its number."""


def sentence(error: BaseException) -> str:
    """Returns what went wrong, and the cure if one is known, in one line."""
    if not isinstance(error, OSError) or error.strerror is None:
        return " ".join(str(error).split()) or type(error).__name__
    place = f"{error.filename}: " if error.filename else ""
    cure = _CURES.get(error.errno or 0)
    return " ".join(f"{place}{error.strerror}{f'; {cure}' if cure else ''}".split())


def summary(error: BaseException) -> str:
    """Returns the type and the message of an error, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split("\n", 1)[0].split())


def exit_code(name: str, body: Callable[[], int]) -> int:
    """Calls `body` and returns the exit code of the command `name`: that of `body`, or what ended it.

    130 for SIGINT and 143 for SIGTERM, 141 if the reader of stdout is gone, 2 for a ValueError (bad flags, damaged
    files), 1 for an OSError: each with one line on stderr. Any other error is a bug, and shows its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="seqjax.ascii")  # an encoding without the characters of a table
    try:
        with _stopped_by_signals():
            code = body()
            if sys.stdout:
                sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        code, line = 130, INTERRUPTED
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        line = INTERRUPTED if code in [128 + number for number in SIGNALS] else None
    except BrokenPipeError:
        code, line = 128 + signal.SIGPIPE, f"{name}: the reader of its output is gone; {INTERRUPTED}"
    except ValueError as error:
        code, line = 2, f"{name}: {sentence(error)}"
    except OSError as error:
        code, line = 1, f"{name}: {sentence(error)}"
    _give_up_unwritable_output()
    if line:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr)
    for number in SIGNALS:
        # Python restores the default handlers while it ends, and one more signal would replace the exit code.
        if signal.getsignal(number) is _leave:
            signal.signal(number, signal.SIG_IGN)
    return code


def at_once() -> None:
    """Until `exit_code` takes over, SIGINT and SIGTERM end the process with one line: it has started nothing yet.

    They do not raise: an exception would come out of the middle of an import, as a traceback or as another error.
    From now on, errors of threads that outlive a failed checkpoint are not printed.
    """
    _on_signals(_leave)
    sys.unraisablehook = _without_closed_loops


def _leave(number: int, _: FrameType | None) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(128 + number)


def _raise(number: int, _: FrameType | None) -> NoReturn:
    raise Stopped(128 + number)


def _without_closed_loops(unraisable: "sys.UnraisableHookArgs") -> None:
    """Shows an exception that cannot be raised, unless it belongs to a checkpoint whose failure is raised already.

    The threads of the storage library below Orbax end after the write that failed, and then report to an event loop
    that is closed.
    """
    if unraisable.exc_type is not RuntimeError or str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _on_signals(handler: Callable[[int, FrameType | None], NoReturn]) -> dict[signal.Signals, Any]:
    """Sets the handler of both signals, unless they are ignored (nohup, a job in the background); the old ones."""
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    previous = {number: old for number, old in previous.items() if old is not signal.SIG_IGN}
    for number in previous:
        signal.signal(number, handler)
    return previous


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    previous = _on_signals(_raise)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _give_up_unwritable_output() -> None:
    """Discards unwritable output, which Python would try to write again at exit, with an error of its own."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    chars = error.object[error.start : error.end]
    return "".join(_ASCII.get(char) or char.encode("unicode_escape").decode() for char in chars), error.end


codecs.register_error("seqjax.ascii", _in_ascii)
