"""Randomness in a module: `deterministic`, a separate stream, `Dropout`, and regularizers as part of a state."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
from flax import nnx

from seqjax import draws, noise, regularizers
from seqjax.arrays import Array, Key
from seqjax.core import Cell
from seqjax.identity import Value

Rngs = nnx.Rngs | nnx.RngStream
"""Where noise draws from: streams, of which "dropout" is used, or one stream."""


def _omits(rate: Any) -> bool:
    """Whether a rate is the Python number 0, which omits the noise; a JAX scalar 0 still draws."""
    return isinstance(rate, int | float) and rate == 0


class Noisy(nnx.Module):
    """What layers with noise share: `deterministic`, and a random stream of their own."""

    def __init__(self, rngs: nnx.Rngs | None):
        self.deterministic = False
        stream = getattr(rngs, "dropout", None)
        self.rngs = nnx.data(stream and stream.fork())

    def set_view(self, deterministic: bool | None = None):
        """Set `deterministic` of the copy that `nnx.view` makes.

        Args:
          deterministic: if true, no noise.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _active(self, rate: Any) -> bool:
        return not self.deterministic and not _omits(rate)

    def _key(self, rngs: Rngs | None) -> Key:
        rngs = self.rngs if rngs is None else rngs
        if rngs is None:
            raise ValueError(
                f"{type(self).__name__} has noise to draw and no random stream: pass "
                "rngs=nnx.Rngs(dropout=seed) to it or to its constructor, or switch noise off with eval()"
            )
        return rngs["dropout"]() if isinstance(rngs, nnx.Rngs) else rngs()


class Dropout(Noisy):
    """Elements set to 0 with probability `rate`, the others divided by `1 - rate`; a new mask at each call.

    `nnx.Dropout`, except that the rate may be a traced JAX scalar.
    """

    def __init__(self, rate: Any, *, rngs: nnx.Rngs | None = None):
        """Set the rate.

        Args:
          rate: in [0, 1).
          rngs: its stream "dropout" is forked; may be None if every call gives one.
        """
        super().__init__(rngs)
        self.rate = draws.check_rate(rate)

    def __call__(self, x: Array, *, rngs: Rngs | None = None) -> Array:
        """`x` of any shape, floating; `rngs` goes before the stream of the module."""
        return x * draws.dropout_mask(self._key(rngs), self.rate, x.shape, x.dtype) if self._active(self.rate) else x


EVALUATION: dict[Callable, Callable[..., Cell]] = {noise.zoneout: noise.zoneout_mean}
"""The cell to evaluate with, for regularizers where it is not the bare one."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Regularizer:
    """A regularizer and its keywords, those that hold arrays as leaves: a module keeps them in its state.

    `evaluation`, called with the same keywords, makes the cell to evaluate with; None means the bare cell.
    """

    function: Value = field(metadata={"static": True})
    evaluation: Value = field(metadata={"static": True})
    arrays: dict[str, Any]

    def __call__(self, *args: Any) -> Any:
        """What the regularizer makes of a cell, or of `(key, params)`."""
        return self.function.value(*args, **self.arrays)

    def wrap(self, cell: Cell) -> tuple[Cell, regularizers.Sample]:
        """The noisy cell and its sample; TypeError if the function makes something else."""
        made = self(cell)
        if isinstance(made, Cell) or not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Cell)):
            name = getattr(self.function.value.func, "__name__", self.function.value.func)
            raise TypeError(f"a regularizer is Cell -> (Cell, sample), and {name} makes a {type(made).__name__}")
        return made

    def evaluated(self, cell: Cell) -> Cell:
        """The cell to evaluate with."""
        make = self.evaluation.value
        return make(cell, **self.function.value.keywords, **self.arrays) if make else cell


def as_regularizer(given: Any) -> Regularizer:
    """A function, a `functools.partial` of one by keywords, or a pair of such and of its function for evaluation."""
    if isinstance(given, Regularizer):
        return given
    function, evaluation = given if isinstance(given, tuple) else (given, None)
    whole = partial(function)
    arrays = {
        name: value
        for name, value in whole.keywords.items()
        if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))
    }
    rest = {name: value for name, value in whole.keywords.items() if name not in arrays}
    settled = partial(whole.func, *whole.args, **rest)
    return Regularizer(Value(settled), Value(evaluation or EVALUATION.get(whole.func)), arrays)


def active(given: Iterable[Regularizer]) -> list[Regularizer]:
    """The regularizers without those whose keyword `rate` is the Python number 0."""
    return [regularizer for regularizer in given if not _omits(regularizer.function.value.keywords.get("rate"))]
