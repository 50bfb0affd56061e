"""A run that is shown elsewhere too, such as in TensorBoard: what shows it may fail, the run may not."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Mirror", "Opener", "Sink"]


class Sink(Protocol):
    """What shows a run: one of `seqjax.train.sinks`, or any object with these methods.

    It is told what the run has written already. An error that it raises ends the sink, not the run.
    """

    def log(self, record: Mapping[str, Any]) -> None:
        """Shows a record of metrics.jsonl."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """Shows the final numbers."""

    def close(self) -> None:
        """Releases what the sink holds; the run may not be finished."""


Opener = Callable[[Path, Mapping[str, Any]], Sink]
"""The directory and the flags of a run -> a sink that shows nothing yet, whatever an earlier one has left there."""


class Mirror:
    """The sink of a run, from the first event on, until it is closed or fails.

    An event opens the sink where none is open, and shows it the whole run. So after a resume, which drops records, the
    sink has those that are left, each once, whatever it had before.
    """

    def __init__(self, opener: Opener, directory: str | os.PathLike, flags: Mapping[str, Any]):
        """Opens nothing yet."""
        self._opener, self._directory, self._flags = opener, Path(directory), flags
        self._sink: Sink | None = None
        self._failed = False

    def tell(self, event: Callable[[Sink], None], replay: Callable[[Sink], None]) -> None:
        """Tells the sink of an event.

        Args:
          event: calls a method of the sink.
          replay: shows a new sink the whole run, this event included.
        """
        if self._failed:
            return
        try:
            if self._sink:
                event(self._sink)
            else:
                self._sink = self._opener(self._directory, self._flags)
                replay(self._sink)
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        """Closes the sink; the next event opens it anew."""
        sink, self._sink = self._sink, None
        if sink:
            try:
                sink.close()
            except Exception as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Leaves the sink alone from now on: whatever a library of logging raises must not end a run."""
        sink, self._sink, self._failed = self._sink, None, True
        name = getattr(self._opener, "__name__", repr(self._opener))
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(
            f"WARNING: {self._directory}: {name} failed and is told no more; metrics.jsonl has everything: {reason}",
            file=sys.stderr,
        )
        if sink:
            with contextlib.suppress(Exception):
                sink.close()
