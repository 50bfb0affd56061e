"""Checkpoints of a training state: written by Orbax, verified by a digest when they are read back."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

KEEP = 3  # one more than needed to survive a corrupt newest checkpoint


class Checkpoints:
    """The checkpoints of one training: `directory/STEP/`, the newest three of them.

    A checkpoint is a state (any pytree of arrays; typed PRNG keys as well) and `meta`, a small JSON dict. Orbax
    writes it under a temporary name first, so that a process killed in the middle leaves the older ones valid.
    """

    def __init__(self, directory: Path):
        """Creates the directory where it is missing and removes what a killed process left half written."""
        self.directory = Path(directory).absolute()
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
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({"values": meta, "digest": _digest(state, meta)}),
        )
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:  # Orbax and its storage library raise many types
            raise OSError(f"checkpoint of step {step} could not be written to {self.directory}: {error}") from error

    def restore(self, like: Any) -> tuple[Any, dict] | None:
        """The newest checkpoint that can be read, as (state, meta); None where none was ever written.

        A checkpoint that cannot be read, or whose digest is wrong, is reported on stderr and passed over for
        the one before; once an older one is read, the broken ones are removed, since training will write them anew.

        Args:
          like: a state of the same structure, shapes, dtypes and devices.

        Raises:
          ValueError: there are checkpoints, and none of them can be read.
        """
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)),
            meta=ocp.args.JsonRestore(),
        )
        broken: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                saved = self._manager.restore(step, args=items)
                state, meta, digest = saved["state"], saved["meta"]["values"], saved["meta"]["digest"]
                if _digest(state, meta) != digest:
                    raise ValueError("the content does not match its digest")
            except Exception as error:  # whatever the reason, the checkpoint before this one may be sound
                broken[step] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                path = self.directory / str(step)
                print(f"WARNING: skipping corrupt checkpoint of step {step}, {path}: {broken[step]}", file=sys.stderr)
                continue
            for corrupt in broken:
                self._manager.delete(corrupt)
            return state, meta
        if broken:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in broken.items())
            raise ValueError(
                f"no checkpoint in {self.directory} can be read ({reasons}); "
                "remove this directory to train from the start"
            )
        return None

    def close(self) -> None:
        """Releases what Orbax holds."""
        self._manager.close()


def _digest(state: Any, meta: dict) -> str:
    """Hash of every byte of the state and of meta: the file formats below do not notice each flipped bit."""
    digest = hashlib.blake2b(json.dumps(meta, sort_keys=True).encode())
    for leaf in jax.tree.leaves(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()
