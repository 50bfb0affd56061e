"""Files that are replaced as a whole or not at all, and arrays in them."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seqjax.data import files

__all__ = ["named_errors", "read_arrays", "write_arrays", "write_atomic"]


def write_atomic(path: str | os.PathLike, content: str | bytes) -> None:
    """Replaces the file at `path` by `content` (text as UTF-8) as a whole, or, on any failure, not at all.

    Raises:
      OSError: it could not be written; the old file is as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with named_errors(path), temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(path: str | os.PathLike, /, **arrays: Any) -> None:
    """Writes named arrays as a compressed .npz, as `write_atomic` does; `read_arrays` reads them."""
    with io.BytesIO() as file:
        np.savez_compressed(file, **arrays)
        write_atomic(path, file.getvalue())


def read_arrays(path: str | os.PathLike, /) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz by name. Unlike `numpy.load`, it reads all of them and leaves no file open.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is damaged, or not an .npz of arrays.
    """
    return files.arrays(Path(path).read_bytes(), str(path))


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Names the file in the errors (OSError) of a failed write, which Python leaves out."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
