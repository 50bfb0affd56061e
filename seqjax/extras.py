"""Packages that come with an extra of seqjax, `pip install 'seqjax[flax]'`, and the error where one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def needed(extra: str, by: str, *later: str) -> Iterator[None]:
    """Wraps the imports of packages that come with an extra.

    Args:
      extra: its name.
      by: what needs the packages, for the message.
      later: packages that are imported only later; they are looked up here, not imported.

    Raises:
      ModuleNotFoundError: a package is missing; the message names it and the command that installs it.
    """
    try:
        for package in later:
            if find_spec(package) is None:
                raise ModuleNotFoundError(name=package)
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("seqjax", "experiments"):
            raise  # one of our own files, which no extra brings
        raise ModuleNotFoundError(f"{by} needs {error.name}: pip install 'seqjax[{extra}]'", name=error.name) from None
