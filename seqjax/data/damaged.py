"""Damaged and malicious files: reading one raises a single ValueError that names it, within bounds.

The bounds apply to everything unpacked from one compressed file or archive, including compressed files inside it. They
admit the data sets read here, of which the 100,000 files of aclImdb and the 5.6 GB of GloVe 840B are the largest, and
stop a decompression bomb, of any size, at 64 MiB.
"""

import contextlib
import errno
import os
from collections.abc import Iterator

__all__ = ["BYTES", "MEMBERS", "NAME", "RATIO", "SMALL", "Bounds", "named"]

MEMBERS = 250_000
"""The most files and folders in an archive, including those that are skipped."""
BYTES = 16 << 30
"""The most bytes that a file may unpack to."""
RATIO = 200
"""The largest ratio of unpacked to compressed bytes, beyond the first `SMALL` bytes."""
SMALL = 64 << 20
"""Bytes that a file of any size may unpack to."""
NAME = 4096
"""The most characters of a name in an archive, the limit of a path."""

_OF_THE_FILE = (None, errno.EINVAL, errno.EOVERFLOW)  # not from the file system, or an impossible offset


@contextlib.contextmanager
def named(place: str | os.PathLike[str], what: str = "damaged") -> Iterator[None]:
    """Turns anything that a parser raises for a damaged file into one ValueError that names the file, in one line.

    Parsers do not document what they raise: zlib.error, struct.error, AttributeError; RecursionError for nested lists;
    MemoryError for a size in a header. Errors that already name the place pass unchanged, as do file system errors.

    Args:
      place: the file, first in the message.
      what: the problem, next in the message.

    Raises:
      ValueError: in place of what a parser raised.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        if error.errno not in _OF_THE_FILE:
            raise OSError(error.errno, error.strerror, str(place)) from error
        raise _refusal(place, what, error) from error
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(place)):
            raise
        raise _refusal(place, what, error) from error


def _refusal(place: str | os.PathLike[str], what: str, error: Exception) -> ValueError:
    message = " ".join(str(error).split())[:300]
    return ValueError(f"{place}: {what}: {type(error).__name__}: {message}".removesuffix(": "))


class Bounds:
    """Counts what was unpacked from one compressed file or archive, and enforces the bounds above.

    Attributes:
      packed: compressed bytes read so far.
    """

    def __init__(self, place: str | os.PathLike[str], packed: int = 0):
        self.packed = packed
        self._place, self._unpacked, self._members = place, 0, 0

    def unpack(self, count: int) -> None:
        """Counts unpacked bytes. Raises ValueError beyond the bounds."""
        self._unpacked += count
        self.expect(0)

    def expect(self, count: int) -> None:
        """Announces bytes to come. Raises ValueError if they would be beyond the bounds."""
        total = self._unpacked + count
        if total > BYTES:
            raise self._beyond(f"more than {BYTES:,} bytes")
        if total > max(SMALL, RATIO * self.packed):
            raise self._beyond(f"{total:,} bytes from {self.packed:,}, more than {RATIO} times as many")

    def member(self, name: str, size: int) -> None:
        """Counts a member and checks the size in its header. Raises ValueError beyond the bounds."""
        self._members += 1
        if self._members > MEMBERS:
            raise self._beyond(f"more than {MEMBERS:,} members")
        if len(name) > NAME:
            raise ValueError(f"{self._place}: contains a name of {len(name):,} characters, expected at most {NAME:,}")
        if size > BYTES:
            raise self._beyond(f"{size:,} bytes of {name} alone, more than {BYTES:,}")

    def _beyond(self, found: str) -> ValueError:
        return ValueError(f"{self._place}: unpacks to {found}: if you trust it, unpack it and pass its contents")
