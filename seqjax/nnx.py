"""Flax NNX modules over any cell: `Recurrent`, `Bidirectional`, and a `Dropout` whose rate may be traced.

    rnn = seqjax.nnx.Recurrent(seqjax.cells.lstm(64), 14, rngs=nnx.Rngs(0))
    ys = rnn(xs)                                       # xs [B, T, 14], ys [B, T, 64]

Weights are `nnx.Param`, dropout draws from the stream "dropout", and `train()`, `eval()` and `nnx.view` set
`deterministic`, as in Flax's own layers.

A dropout rate is a Python number, which is part of the graph definition, or a JAX scalar, which is part of the state.
So a sweep over rates is a `jax.vmap`, of a function that builds the module with a traced rate, or of one that merges
it from a state among its arguments and sets `rnn.recurrent_dropout = rate`. Only the number 0 leaves the dropout out;
the scalar 0 draws masks of ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax import core, regularizers
from seqjax.core import Array, Carry, Cell, Key, Params
from seqjax.solve import Solver
from seqjax.unroll import batch_shape, mask_from_lengths, unroll

__all__ = ["Bidirectional", "Dropout", "Recurrent"]

Rngs = nnx.Rngs | nnx.RngStream


class _Noisy(nnx.Module):
    """What layers with dropout share: `deterministic`, and a random stream of their own."""

    def __init__(self, rngs: nnx.Rngs | None):
        self.deterministic = False
        stream = getattr(rngs, "dropout", None)
        self.rngs = nnx.data(stream and stream.fork())

    def set_view(self, deterministic: bool | None = None):
        """Set `deterministic` of the copy that `nnx.view` makes.

        Args:
          deterministic: if true, no dropout.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _active(self, rate: Any) -> bool:
        return not self.deterministic and not (isinstance(rate, int | float) and rate == 0)

    def _key(self, rngs: Rngs | None) -> Key:
        rngs = self.rngs if rngs is None else rngs
        if rngs is None:
            raise ValueError(
                f"{type(self).__name__} has a dropout mask to draw and no random stream: pass "
                "rngs=nnx.Rngs(dropout=seed) to it or to its constructor, or switch dropout off with eval()"
            )
        return rngs["dropout"]() if isinstance(rngs, nnx.Rngs) else rngs()


class Dropout(_Noisy):
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
        self.rate = regularizers.check_rate(rate)

    def __call__(self, x: Array, *, rngs: Rngs | None = None) -> Array:
        """`x` of any shape, floating; `rngs` goes before the stream of the module."""
        return (
            x * regularizers.dropout_mask(self._key(rngs), self.rate, x.shape, x.dtype)
            if self._active(self.rate)
            else x
        )


class Recurrent(_Noisy):
    """A cell run over sequences, `seqjax.unroll` as a layer.

    Attributes:
      cell, in_features, recurrent_dropout, input_dropout, deterministic: as given; the rates may be replaced.
      params: the cell's params, every leaf an `nnx.Param`; `weights` has the arrays themselves.
    """

    def __init__(
        self,
        cell: Cell,
        in_features: int,
        *,
        rngs: nnx.Rngs,
        recurrent_dropout: Any = 0.0,
        input_dropout: Any = 0.0,
        return_sequences: bool = True,
        reverse: bool = False,
        time_major: bool = False,
        method: str | Solver = "auto",
    ):
        """Draw the weights.

        Args:
          cell: any cell, also a stack.
          in_features: features D of the inputs; 0 for a cell that reads tokens (`wrappers.with_embedding`).
          rngs: the stream "params" draws the weights through `cell.init`, the stream "dropout" is forked.
          recurrent_dropout: rate of `regularizers.recurrent_dropout`, in [0, 1).
          input_dropout: rate of `regularizers.input_dropout`, in [0, 1).
          return_sequences: the outputs of all steps, or of the step that was processed last.
          reverse: run from the last step to the first; the outputs keep the order of the inputs.
          time_major: inputs, outputs and masks are [T, B, ...] instead of [B, T, ...].
          method: as in `seqjax.unroll`.

        Raises:
          ValueError: for a rate outside [0, 1), or recurrent dropout of a cell that has no recurrent product.
        """
        super().__init__(rngs)
        self.cell = nnx.static(cell)
        self.in_features = in_features
        self.params = nnx.data(jax.tree.map(nnx.Param, cell.init(rngs.params(), in_features)))
        self.recurrent_dropout = recurrent_dropout
        self.input_dropout = input_dropout
        self.return_sequences = return_sequences
        self.reverse = reverse
        self.time_major = time_major
        self.method = method
        self._regularized()  # what cannot be regularized is refused here, not at the first call

    @property
    def weights(self) -> Params:
        """The params of the cell as plain arrays, as `seqjax.unroll` takes them."""
        return nnx.as_pure(self.params)

    @property
    def out_features(self) -> int:
        """Features O of the outputs."""
        return core.out_features(self.cell, self.weights, self.in_features)

    def _regularized(self) -> tuple[Cell, list[regularizers.Sample]]:
        cell, samples = self.cell, []
        for rate, regularizer in (
            (self.recurrent_dropout, regularizers.recurrent_dropout),
            (self.input_dropout, regularizers.input_dropout),
        ):
            if self._active(rate):
                cell, sample = regularizer(cell, rate)
                samples.append(sample)
        return cell, samples

    def _time_axis(self, xs: Array, lengths: Array | None, mask: Array | None) -> int:
        """Where the time axis is, after a look at the shapes."""
        tokens = self.in_features == 0
        own = (*self.cell.space, *(() if tokens else (self.in_features,)))
        shape = xs.shape[: max(xs.ndim - len(own), 0)]
        if len(shape) < 1 or xs.shape[len(shape) :] != own:
            axes = ", ".join(["T, B" if self.time_major else "B, T", *map(str, own)])
            raise ValueError(f"inputs have shape {xs.shape}, expected [{axes}]")
        if lengths is not None and mask is not None:
            raise ValueError("lengths and mask both say which steps are real: give one of them")
        time = 0 if self.time_major else len(shape) - 1
        batch = shape[:time] + shape[time + 1 :]
        if lengths is not None and lengths.shape != batch:
            raise ValueError(
                f"lengths have shape {lengths.shape}, expected {batch}, one for each sequence of {xs.shape}"
            )
        if mask is not None and (mask.shape != shape or mask.dtype != bool):
            raise ValueError(
                f"mask must be bool {shape}, one for each step of {xs.shape}, got {mask.dtype} {mask.shape}"
            )
        return time

    def __call__(
        self,
        xs: Array,
        *,
        initial_carry: Carry | None = None,
        lengths: Array | None = None,
        mask: Array | None = None,
        return_carry: bool = False,
        rngs: Rngs | None = None,
    ) -> Any:
        """Run the cell over a batch of sequences.

        Unless `deterministic`, dropout masks are drawn once for each sequence of each call.

        Args:
          xs: inputs [B, T, D] with any number of batch axes, or tokens int [B, T].
          initial_carry: carry before the first step, leaves [B, ...]; None for the cell's own.
          lengths: int [B], the number of real steps of each sequence, which are its first ones.
          mask: bool [B, T], true at the real steps; it may have holes. The carry passes the other steps unchanged, and
            their outputs are 0.
          return_carry: return the carry too.
          rngs: where dropout draws from, instead of the stream of the module.

        Returns:
          The outputs ys [B, T, O], or `(carry, ys)` with the carry after the last step. With `return_sequences=False`,
          ys [B, O] is the output at the last real step of each sequence; with `reverse`, at the first one, which was
          processed last; 0 for a sequence without real steps.

        Raises:
          ValueError: for inputs, lengths, mask or carry of the wrong shape, both lengths and mask, or dropout
            without a random stream.
        """
        time = self._time_axis(xs, lengths, mask)
        inputs: Any = jnp.moveaxis(xs, time, 0)
        if mask is not None:
            mask = jnp.moveaxis(mask, time, 0)
        elif lengths is not None:
            mask = mask_from_lengths(lengths, inputs.shape[0])
        params = self.weights
        carry = initial_carry
        if carry is None:
            carry = self.cell.initial_carry(params, batch_shape(inputs, self.cell.space))
        cell, samples = self._regularized()
        for sample in samples:
            inputs = (inputs, sample(self._key(rngs), carry, inputs))
        carry, ys = unroll(cell, params, carry, inputs, mask=mask, reverse=self.reverse, method=self.method)
        ys = jnp.moveaxis(ys, 0, time) if self.return_sequences else _processed_last(ys, mask, self.reverse)
        return (carry, ys) if return_carry else ys


def _processed_last(ys: Array, mask: Array | None, reverse: bool) -> Array:
    """Of ys [T, B, O] the output [B, O] at the last real step, or at the first."""
    if mask is None:
        return ys[0] if reverse else ys[-1]
    step = jnp.argmax(mask, 0) if reverse else mask.shape[0] - 1 - jnp.argmax(jnp.flip(mask, 0), 0)
    return jnp.take_along_axis(ys, jnp.expand_dims(step, (0, *range(1 + step.ndim, ys.ndim))), axis=0)[0]


class Bidirectional(nnx.Module):
    """One cell run forward and another backward in time, their outputs concatenated (Schuster & Paliwal 1997).

    The forward outputs come first. With `return_sequences=False` they are the forward output at the last real step and
    the backward output at the first step: the step that each direction processed last.

    It takes two cells and builds both `Recurrent` itself, rather than take two modules, so that the directions cannot
    disagree about the time axis or about what they return. Each draws weights and dropout masks of its own.

    Attributes:
      forward, backward: the two `Recurrent`.
    """

    def __init__(self, forward: Cell, backward: Cell, in_features: int, *, rngs: nnx.Rngs, **options: Any):
        """Draw the weights.

        Args:
          forward: the forward cell.
          backward: the backward cell; may be the same, cells hold no weights.
          in_features: features D of the inputs.
          rngs: as in `Recurrent`.
          **options: of `Recurrent`, for both directions, except `reverse`.
        """
        self.forward = Recurrent(forward, in_features, rngs=rngs, **options)
        self.backward = Recurrent(backward, in_features, rngs=rngs, reverse=True, **options)

    @property
    def out_features(self) -> int:
        """Features O + O' of the outputs."""
        return self.forward.out_features + self.backward.out_features

    def __call__(
        self,
        xs: Array,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        lengths: Array | None = None,
        mask: Array | None = None,
        return_carry: bool = False,
        rngs: Rngs | None = None,
    ) -> Any:
        """As `Recurrent`; the carry is a pair, forward and backward, and ys is [B, T, O + O'] or [B, O + O']."""
        options: Any = {"lengths": lengths, "mask": mask, "return_carry": True, "rngs": rngs}
        forward, backward = (None, None) if initial_carry is None else initial_carry
        forward, ys = self.forward(xs, initial_carry=forward, **options)
        backward, zs = self.backward(xs, initial_carry=backward, **options)
        ys = jnp.concatenate([ys, zs], axis=-1)
        return ((forward, backward), ys) if return_carry else ys
