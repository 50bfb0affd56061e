"""What a damaged file, or one made to do harm, does to whoever reads it: one ValueError that names it, within bounds.

The bounds are those of all that comes out of one packed file or archive, files packed in it included. They let through
the data sets that are read here, of which the 100,000 files of aclImdb and the 5.6 GB of GloVe 840B are the most, and
stop a bomb, of whatever size, at 64 MiB.
"""

import contextlib
import errno
import os
from collections.abc import Iterator

MEMBERS = 250_000
"""Files and folders in an archive, those that are passed over included."""
BYTES = 16 << 30
"""Bytes that it unpacks to."""
RATIO = 200
"""How many times what was read of it; what is smaller than `SMALL` is not held against it."""
SMALL = 64 << 20
"""Bytes."""
NAME = 4096
"""Characters of a name in an archive, as many as a path may have."""

_OF_THE_FILE = (None, errno.EINVAL, errno.EOVERFLOW)  # no error of the file system, or a place that cannot be sought


@contextlib.contextmanager
def named(place: str | os.PathLike[str], what: str = "damaged") -> Iterator[None]:
    """Whatever a damaged file makes a parser raise, as one ValueError that names the file, in one line.

    What that is, no parser says: zlib.error, struct.error, AttributeError; RecursionError, where lists lie in lists;
    MemoryError, where a header says so. What names the place already passes, as does an error of the file system.

    Args:
      place: what an error names first.
      what: what it says next.
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
    said = " ".join(str(error).split())[:300]
    return ValueError(f"{place}: {what}: {type(error).__name__}: {said}".removesuffix(": "))


class Bounds:
    """What has come out of one packed file or archive, held against the bounds above.

    Attributes:
      packed: bytes of the file that this came from.
    """

    def __init__(self, place: str | os.PathLike[str], packed: int = 0):
        self.packed = packed
        self._place, self._unpacked, self._members = place, 0, 0

    def unpack(self, count: int) -> None:
        """So many bytes more. Raises ValueError beyond the bounds."""
        self._unpacked += count
        self.expect(0)

    def expect(self, count: int) -> None:
        """So many bytes are to come. Raises ValueError if they would be beyond the bounds."""
        total = self._unpacked + count
        if total > BYTES:
            raise self._beyond(f"more than {BYTES:,} bytes")
        if total > max(SMALL, RATIO * self.packed):
            raise self._beyond(f"{total:,} bytes from {self.packed:,}, more than {RATIO} times as many")

    def member(self, name: str, size: int) -> None:
        """One member more, which says that it has so many bytes. Raises ValueError beyond the bounds."""
        self._members += 1
        if self._members > MEMBERS:
            raise self._beyond(f"more than {MEMBERS:,} members")
        if len(name) > NAME:
            raise ValueError(f"{self._place}: a name of {len(name):,} characters in it, expected {NAME:,} at most")
        if size > BYTES:
            raise self._beyond(f"{size:,} bytes of {name} alone, more than {BYTES:,}")

    def _beyond(self, found: str) -> ValueError:
        return ValueError(f"{self._place}: unpacks to {found}: if you trust it, unpack it and give what was in it")
