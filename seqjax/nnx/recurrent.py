"""Cells as Flax NNX modules: over sequences (`Recurrent`), and one step at a time (`RNNCell`)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from seqjax import core
from seqjax.arrays import Array, Carry, Params, as_arrays
from seqjax.core import Cell, batch_shape, mismatch, without_stepped
from seqjax.identity import Value
from seqjax.nnx.noise import Noisy, Regularizer, Rngs, active, as_regularizer
from seqjax.regularizers import Sample
from seqjax.solvers.dispatch import Solver
from seqjax.solvers.gated_loop.plan import transposed_by_caller
from seqjax.unrolling import mask_from_lengths, unroll


class _Weighted(nnx.Module):
    """A cell and its params."""

    def __init__(self, cell: Cell, in_features: int, params: Params | None, dtype: DTypeLike | None, rngs: nnx.Rngs):
        if params is None:
            params = cell.init(rngs.params(), in_features)
        elif problem := mismatch(cell, in_features, params):
            raise ValueError(problem)
        self.cell = nnx.static(cell)
        self.in_features = in_features
        self.cell_params = nnx.data(jax.tree.map(nnx.Param, params))
        self.dtype = dtype

    @property
    def weights(self) -> Params:
        """The params of the cell as plain arrays, as `seqjax.unroll` takes them."""
        return nnx.as_pure(self.cell_params)

    @property
    def out_features(self) -> int:
        """Features O of the outputs."""
        return core.out_features(self.cell, self.weights, self.in_features)

    def _cast(self, tree: Any) -> Any:
        """The floating leaves of a tree in the dtype of the computation."""
        if self.dtype is None:
            return tree
        return jax.tree.map(lambda x: x.astype(self.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


class RNNCell(_Weighted):
    """One step of any cell, with the interface of `nnx.RNNCellBase`: `nnx.RNN` runs it, and decoders do by hand.

        carry = rnn_cell.initialize_carry(x.shape)
        carry, y = rnn_cell(carry, x)                  # x [B, D], y [B, O]

    Attributes:
      cell, in_features, dtype: as given.
      cell_params: the params of the cell, every leaf an `nnx.Param`; `weights` has the arrays themselves.
    """

    def __init__(
        self,
        cell: Cell,
        in_features: int,
        *,
        params: Params | None = None,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        """Draw the weights; arguments and errors as in `Recurrent`."""
        super().__init__(cell, in_features, params, dtype, rngs)

    def __call__(self, carry: Carry, x: Array) -> tuple[Carry, Array]:
        """One step: `(carry, x [B, D]) -> (carry, y [B, O])`; tokens are int [B]."""
        return self.cell.step(self._cast(self.weights), carry, self._cast(x))

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> Carry:
        """The carry before the first step, for inputs [B, D] (tokens [B]); nothing is random, `rngs` is not used."""
        del rngs
        batch = input_shape[:-1] if self.in_features else input_shape
        return self.cell.initial_carry(self._cast(self.weights), tuple(batch))

    @property
    def num_feature_axes(self) -> int:
        """How many of the last axes of an input are features: 1, of tokens 0."""
        return 1 if self.in_features else 0


class Recurrent(_Weighted, Noisy):
    """A cell run over sequences, `seqjax.unroll` as a layer; it is called as `nnx.RNN` is.

    Attributes:
      cell, in_features, dtype, regularizers, weight_regularizers, deterministic: as given; the regularizers may be
        replaced.
      cell_params: the params of the cell, every leaf an `nnx.Param`; `weights` has the arrays themselves.
    """

    def __init__(
        self,
        cell: Cell,
        in_features: int,
        *,
        rngs: nnx.Rngs,
        params: Params | None = None,
        dtype: DTypeLike | None = None,
        regularizers: Sequence[Any] = (),
        weight_regularizers: Sequence[Any] = (),
        return_sequences: bool = True,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = True,
        time_major: bool = False,
        method: str | Solver = "auto",
    ):
        """Draw the weights.

        Args:
          cell: any cell, also a stack.
          in_features: features D of the inputs; 0 for a cell that reads tokens (`wrappers.with_embedding`).
          rngs: the stream "params" draws the weights through `cell.init`, the stream "dropout" is forked.
          params: weights to start from instead, such as those of `seqjax.importers`.
          dtype: of the computation, to which weights and inputs are cast; None leaves them. (That of the params is an
            argument of the cell.) With 16 bits, outputs and carries are float32, see `arrays.carry_dtype`.
          regularizers: of the cell, innermost first: `Cell -> (Cell, sample)`, usually a `functools.partial` with the
            rate, `partial(regularizers.recurrent_dropout, rate=0.25)`. One with the Python number 0 as `rate` is
            omitted and may be given for any cell; with a JAX scalar 0 it draws. In evaluation there is none of them;
            `noise.zoneout` is then `noise.zoneout_mean`, and in a pair `(partial(f, rate=...), g)`, g takes the place
            of f, with the same keywords.
          weight_regularizers: `(key, params) -> params`, `partial(regularizers.weight_drop, rate=0.5)`, omitted in the
            same case; in evaluation none.
          return_sequences: the outputs of all steps, or of the step that was processed last.
          return_carry: return the carry too.
          reverse: run from the last step to the first.
          keep_order: with `reverse`, outputs in the order of the inputs; otherwise in that of the processing. (False in
            `nnx.RNN`.)
          time_major: inputs, outputs and masks are [T, B, ...] instead of [B, T, ...].
          method: as in `seqjax.unroll`.

        Raises:
          ValueError: for a rate outside [0, 1), a regularizer that the cell does not admit, or params of other shapes.
          TypeError: for a regularizer that does not make a cell and a sample.
        """
        _Weighted.__init__(self, cell, in_features, params, dtype, rngs)
        Noisy.__init__(self, rngs)
        self.regularizers = regularizers
        self.weight_regularizers = weight_regularizers
        self.return_sequences = return_sequences
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.time_major = time_major
        self.method = method
        # What cannot be regularized is refused here, not at the first call.
        self._regularized()
        for regularizer in active(self.weight_regularizers):
            jax.eval_shape(regularizer, jax.random.key(0), self.weights)

    @property
    def method(self) -> str | Solver:
        """The solver, or its name."""
        return self._method.value

    @method.setter
    def method(self, given: str | Solver):
        self._method = Value(given)

    @property
    def regularizers(self) -> Sequence[Regularizer]:
        """The regularizers of the cell; may be set to a sequence of functions, as in the constructor."""
        return self._regularizers

    @regularizers.setter
    def regularizers(self, given: Sequence[Any]):
        self._regularizers = nnx.List([nnx.data(as_regularizer(r)) for r in given])

    @property
    def weight_regularizers(self) -> Sequence[Regularizer]:
        """Those of the params, set likewise."""
        return self._weight_regularizers

    @weight_regularizers.setter
    def weight_regularizers(self, given: Sequence[Any]):
        self._weight_regularizers = nnx.List([nnx.data(as_regularizer(r)) for r in given])

    def _regularized(self) -> tuple[Cell, list[Sample]]:
        cell, samples = self.cell, []
        for regularizer in active(self.regularizers):
            if self.deterministic:
                cell = regularizer.evaluated(cell)
            else:
                cell, sample = regularizer.wrap(cell)
                samples.append(sample)
        return cell, samples

    def _time_axis(self, xs: Array, time_major: bool, seq_lengths: Array | None, mask: Array | None) -> int:
        """Where the time axis is, after a look at the shapes."""
        tokens = self.in_features == 0
        own = (*self.cell.space, *(() if tokens else (self.in_features,)))
        shape = xs.shape[: max(xs.ndim - len(own), 0)]
        if len(shape) < 1 or xs.shape[len(shape) :] != own:
            axes = ", ".join(["T, B" if time_major else "B, T", *map(str, own)])
            raise ValueError(f"inputs have shape {xs.shape}, expected [{axes}]")
        if seq_lengths is not None and mask is not None:
            raise ValueError("seq_lengths and mask both mark the real steps: give one of them")
        time = 0 if time_major else len(shape) - 1
        batch = shape[:time] + shape[time + 1 :]
        if seq_lengths is not None and seq_lengths.shape != batch:
            raise ValueError(
                f"seq_lengths have shape {seq_lengths.shape}, expected {batch}, one for each sequence of {xs.shape}"
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
        seq_lengths: Array | None = None,
        mask: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Rngs | None = None,
    ) -> Any:
        """Run the cell over a batch of sequences.

        Unless `deterministic`, noise is drawn at each call, for each sequence its own.

        Args:
          xs: inputs [B, T, D] with any number of batch axes, or tokens int [B, T].
          initial_carry: carry before the first step, leaves [B, ...]; None for the cell's own.
          seq_lengths: int [B], the number of real steps of each sequence, which are its first ones.
          mask: bool [B, T], true at the real steps; it may have holes. The carry passes the other steps unchanged, and
            their outputs are 0.
          return_carry: return the carry too; None, here and below, for what the constructor was given.
          time_major: inputs, outputs and masks are [T, B, ...].
          reverse: run from the last step to the first.
          keep_order: with `reverse`, outputs in the order of the inputs.
          rngs: where noise draws from, instead of the stream of the module.

        Returns:
          The outputs ys [B, T, O], or `(carry, ys)` with the carry after the last step. With `return_sequences=False`,
          ys [B, O] is the output at the last real step of each sequence; with `reverse`, at the first one, which was
          processed last; 0 for a sequence without real steps.

        Raises:
          ValueError: for inputs, lengths, mask or carry of the wrong shape, both lengths and mask, `keep_order=False`
            with a mask, or noise without a random stream.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        xs = as_arrays("xs", "an array [B, T, D]", xs)
        mask = as_arrays("mask", "an array bool [B, T]", mask)
        seq_lengths = as_arrays("seq_lengths", "an array int [B]", seq_lengths)
        time = self._time_axis(xs, time_major, seq_lengths, mask)
        if mask is not None and reverse and not keep_order:
            raise ValueError("keep_order=False turns each sequence by its length: give seq_lengths instead of a mask")
        inputs: Any = jnp.moveaxis(self._cast(xs), time, 0)
        if mask is not None:
            mask = jnp.moveaxis(mask, time, 0)
        elif seq_lengths is not None:
            mask = mask_from_lengths(seq_lengths, inputs.shape[0])
        params = self._cast(self.weights)
        carry = initial_carry
        if carry is None:
            carry = without_stepped(self.cell.initial_carry(params, batch_shape(inputs, self.cell.space)))
        cell, samples = self._regularized()
        for sample in samples:
            inputs = (inputs, sample(self._key(rngs), carry, inputs))
        if not self.deterministic:
            for regularizer in active(self.weight_regularizers):
                params = regularizer(self._key(rngs), params)
        # With the last output alone, only the inputs would have to be copied, which costs less than strides do.
        with transposed_by_caller(time > 0 and self.return_sequences):
            carry, ys = unroll(cell, params, carry, inputs, mask=mask, reverse=reverse, method=self.method)
        if not self.return_sequences:
            ys = _processed_last(ys, mask, reverse)
        else:
            ys = _as_processed(ys, seq_lengths) if reverse and not keep_order else ys
            ys = jnp.moveaxis(ys, 0, time)
        return (carry, ys) if return_carry else ys


def _processed_last(ys: Array, mask: Array | None, reverse: bool) -> Array:
    """Of ys [T, B, O] the output [B, O] at the last real step, or at the first."""
    if mask is None:
        return ys[0] if reverse else ys[-1]
    step = jnp.argmax(mask, 0) if reverse else mask.shape[0] - 1 - jnp.argmax(jnp.flip(mask, 0), 0)
    return jnp.take_along_axis(ys, jnp.expand_dims(step, (0, *range(1 + step.ndim, ys.ndim))), axis=0)[0]


def _as_processed(ys: Array, seq_lengths: Array | None) -> Array:
    """ys [T, B, O] backward in time, each sequence from its own last step; the padding stays at the end."""
    ys = jnp.flip(ys, 0)
    if seq_lengths is None:
        return ys
    time = jnp.arange(ys.shape[0], dtype=jnp.int32).reshape(-1, *(1,) * seq_lengths.ndim)
    step = (time - jnp.expand_dims(seq_lengths.astype(jnp.int32), 0)) % ys.shape[0]
    return jnp.take_along_axis(ys, jnp.expand_dims(step, tuple(range(step.ndim, ys.ndim))), axis=0)
