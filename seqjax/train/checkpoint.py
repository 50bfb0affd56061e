"""Checkpoints of a training state: written by Orbax, verified by a digest when they are read back."""

import logging
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from seqjax.train.differences import differences, listed
from seqjax.train.leaves import digest, layout

__all__ = ["Checkpoints"]

KEEP = 3  # one more than needed to survive a corrupt newest one

# The first error in Orbax's threads and tasks is raised, and named: tracebacks of all of them would bury that line.
logging.getLogger("absl").addFilter(lambda record: not (record.exc_info and "orbax" in record.pathname))
logging.getLogger("asyncio").addFilter(lambda record: not (record.exc_info and "orbax" in record.getMessage()))


class Checkpoints:
    """The checkpoints of one training: `directory/STEP/`, the newest three of them.

    A checkpoint is a state (any pytree of arrays; typed PRNG keys as well) and `meta`, a small JSON dict. Orbax
    writes it under a temporary name first, so that a process killed in the middle leaves the older ones valid.
    It also holds its origin, and is refused by a training of another one.
    """

    def __init__(self, directory: Path, origin: dict[str, Any] | None = None):
        """Creates the directory where it is missing and removes the incomplete checkpoints of a killed process.

        Args:
          directory: of the checkpoints.
          origin: what the training depends on, by name: a JSON dict.
        """
        self.directory = Path(directory).absolute()
        self._origin = origin or {}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEEP,
            # Small states are written as fast either way, and so an error belongs to the step that it names.
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Writes the checkpoint of `step`; it is complete on return.

        Raises:
          OSError: it could not be written (a full disk, for example); the older checkpoints are as they were.
        """
        described = {"values": meta, "origin": self._origin, "layout": layout(state)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({**described, "digests": [digest((), described), digest(state, described)]}),
        )
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:  # Orbax and its storage library raise many types
            raise OSError(f"checkpoint of step {step} could not be written to {self.directory}: {error}") from error

    def restore(self, like: Any) -> tuple[Any, dict] | None:
        """The newest checkpoint that can be read, as (state, meta); None where none was ever written.

        A checkpoint that cannot be read, or whose digest is wrong, is reported on stderr and passed over for
        the one before; once an older one is read, the broken ones are removed, since training will write them again.

        Args:
          like: a state of the same structure, shapes, dtypes and devices.

        Raises:
          ValueError: there are checkpoints, and none of them can be read; or the newest that can be read is of another
            origin, or of a state of other shapes.
        """
        broken: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                described = self._described(step)
            except Exception as error:  # whatever the reason, the checkpoint before this one may be sound
                broken[step] = self._report(step, error)
                continue
            self._check(step, described, like)
            try:
                items = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
                state = self._manager.restore(step, args=ocp.args.Composite(state=items))["state"]
                if digest(state, _without_digests(described)) != described["digests"][1]:
                    raise ValueError("the content does not match its digest")
            except Exception as error:
                broken[step] = self._report(step, error)
                continue
            for corrupt in broken:
                self._manager.delete(corrupt)
            return state, described["values"]
        if broken:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in broken.items())
            raise ValueError(
                f"no checkpoint in {self.directory} can be read ({reasons}); "
                "remove this directory to train from the start"
            )
        return None

    def _described(self, step: int) -> dict[str, Any]:
        """What a checkpoint holds beside its state, read first: it tells whether the state can be read at all."""
        described = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        if digest((), _without_digests(described)) != described["digests"][0]:
            raise ValueError("the content does not match its digest")
        return described

    def _check(self, step: int, described: dict[str, Any], like: Any) -> None:
        """Raises ValueError for a sound checkpoint that is not of this training."""
        for what, given, found in (
            ("another training", self._origin, described["origin"]),
            ("a state of other shapes", layout(like), described["layout"]),
        ):
            if different := differences(given, found):
                raise ValueError(
                    f"the checkpoint of step {step} in {self.directory} is of {what}: {listed(different)}; give what"
                    " it was made with, or remove this directory to train from the start"
                )

    def _report(self, step: int, error: Exception) -> str:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        path = self.directory / str(step)
        print(f"WARNING: skipping corrupt checkpoint of step {step}, {path}: {reason}", file=sys.stderr)
        return reason

    def close(self) -> None:
        """Releases what Orbax holds."""
        self._manager.close()


def _without_digests(described: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in described.items() if name != "digests"}
