"""Layers beside and above each other: `Bidirectional`, `Stack`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seqjax.arrays import Array, Carry, Params
from seqjax.core import Cell
from seqjax.nnx.noise import Dropout, Rngs
from seqjax.nnx.recurrent import Recurrent


def concatenate(forward: Array, backward: Array) -> Array:
    """Both outputs, side by side, the forward ones first."""
    return jnp.concatenate([forward, backward], axis=-1)


class Bidirectional(nnx.Module):
    """One cell run forward and another backward in time, their outputs concatenated (Schuster & Paliwal 1997).

    The forward outputs come first. With `return_sequences=False` they are the forward output at the last real step and
    the backward output at the first step: the step that each direction processed last.

    It takes two cells and builds both `Recurrent` itself, rather than take two modules, so that the directions cannot
    disagree about the time axis or about what they return. Each draws its own weights and dropout masks.

    Attributes:
      forward, backward: the two `Recurrent`.
    """

    def __init__(
        self,
        forward: Cell,
        backward: Cell,
        in_features: int,
        *,
        rngs: nnx.Rngs,
        params: tuple[Params, Params] | None = None,
        merge_fn: Callable[[Array, Array], Array] = concatenate,
        return_carry: bool = False,
        **options: Any,
    ):
        """Draw the weights.

        Args:
          forward: the forward cell.
          backward: the backward cell; may be the same, cells hold no weights.
          in_features: features D of the inputs.
          rngs: as in `Recurrent`.
          params: weights to start from instead, forward and backward.
          merge_fn: of the two outputs at each step, `jnp.add` for their sum.
          return_carry: return the carries too.
          **options: of `Recurrent`, for both directions, except `reverse` and `keep_order`.

        Raises:
          TypeError: for `reverse` and `keep_order`, which are settled here.
          ValueError: as in `Recurrent`.
        """
        if settled := {"reverse", "keep_order"} & set(options):
            raise TypeError(f"Bidirectional settles {sorted(settled)} itself: outputs are in the order of the inputs")
        params = (None, None) if params is None else params
        self.forward = Recurrent(forward, in_features, rngs=rngs, params=params[0], **options)
        self.backward = Recurrent(backward, in_features, rngs=rngs, params=params[1], reverse=True, **options)
        self.merge_fn = merge_fn
        self.return_carry = return_carry

    @property
    def out_features(self) -> int:
        """Features of the outputs, O + O' where they are concatenated."""
        ys = (jax.ShapeDtypeStruct((rnn.out_features,), jnp.float32) for rnn in (self.forward, self.backward))
        return jax.eval_shape(self.merge_fn, *ys).shape[-1]

    def __call__(
        self,
        xs: Array,
        *,
        initial_carry: tuple[Carry, Carry] | None = None,
        seq_lengths: Array | None = None,
        mask: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        rngs: Rngs | None = None,
    ) -> Any:
        """As `Recurrent`; the carry is a pair, forward and backward, and ys is [B, T, O + O'] or [B, O + O']."""
        options: Any = {"seq_lengths": seq_lengths, "mask": mask, "time_major": time_major, "rngs": rngs}
        forward, backward = (None, None) if initial_carry is None else initial_carry
        forward, ys = self.forward(xs, initial_carry=forward, return_carry=True, **options)
        backward, zs = self.backward(xs, initial_carry=backward, return_carry=True, **options)
        ys = self.merge_fn(ys, zs)
        return_carry = self.return_carry if return_carry is None else return_carry
        return ((forward, backward), ys) if return_carry else ys


def layer(cell: Cell | tuple[Cell, Cell], in_features: int, **options: Any) -> Recurrent | Bidirectional:
    """A `Recurrent` of a cell, or a `Bidirectional` of a forward and a backward one; options and errors are theirs."""
    if isinstance(cell, Cell):
        return Recurrent(cell, in_features, **options)
    return Bidirectional(*cell, in_features, **options)


class Stack(nnx.Module):
    """Layers that each read the outputs of the one before, with dropout between them and skips around them.

        x = dropout(y);  y = layer(x)                  and with `residual`, y = layer(x) + y

    Every layer may run in one direction or in both. Where all run forward, without skips, `Recurrent(cells.stack(...))`
    is the same network as one cell.

    Attributes:
      layers: a `Recurrent` or `Bidirectional` each.
      dropout: the `Dropout` between layers.
    """

    def __init__(
        self,
        cells: Sequence[Cell | tuple[Cell, Cell]],
        in_features: int,
        *,
        rngs: nnx.Rngs,
        params: Sequence[Params] | None = None,
        dropout: Any = 0.0,
        residual: bool = False,
        return_sequences: bool = True,
        return_carry: bool = False,
        **options: Any,
    ):
        """Draw the weights.

        Args:
          cells: one cell a layer, or a pair of a forward and a backward cell.
          in_features: features D of the inputs.
          rngs: as in `Recurrent`.
          params: weights to start from instead, one entry a layer.
          dropout: rate of the dropout between layers, in [0, 1), a new mask for each element, as in PyTorch. (One mask
            a sequence: `regularizers.input_dropout`, which masks what the first layer reads too.)
          residual: add what a layer reads to its output, from the second layer on (Wu et al. 2016, arXiv 1609.08144);
            the layers then have outputs of one width.
          return_sequences: the outputs of all steps, or of the step that was processed last.
          return_carry: return the carries too.
          **options: of `Recurrent`, for all layers, except `reverse` and `keep_order`.

        Raises:
          TypeError: for `reverse` and `keep_order`.
          ValueError: for no cells, params for another number of layers, a residual between widths that differ or
            without sequences; else as in `Recurrent`.
        """
        if not cells:
            raise ValueError("Stack needs at least one cell")
        if settled := {"reverse", "keep_order"} & set(options):
            raise TypeError(f"the layers of a Stack run forward or in both directions, got {sorted(settled)}")
        if params is not None and len(params) != len(cells):
            raise ValueError(f"Stack got params for {len(params)} layers and {len(cells)} cells")
        if residual and not return_sequences:
            raise ValueError("residual adds sequences: a Stack with it has return_sequences=True")
        self.layers = nnx.List([])
        self.residual = residual
        self.return_carry = return_carry
        for i, cell in enumerate(cells):
            given: Any = options | {
                "rngs": rngs,
                "params": None if params is None else params[i],
                "return_sequences": return_sequences or i < len(cells) - 1,
            }
            made = layer(cell, in_features, **given)
            if residual and i > 0 and made.out_features != in_features:
                raise ValueError(f"residual adds {in_features} features to the {made.out_features} of layer {i}")
            in_features = made.out_features
            self.layers.append(made)
        self.dropout = Dropout(dropout, rngs=rngs)

    @property
    def out_features(self) -> int:
        """Features of the outputs of the last layer."""
        return self.layers[-1].out_features

    def __call__(
        self,
        xs: Array,
        *,
        initial_carry: Sequence[Carry] | None = None,
        seq_lengths: Array | None = None,
        mask: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        rngs: Rngs | None = None,
    ) -> Any:
        """As `Recurrent`; the carry is a tuple with an entry a layer."""
        options: Any = {"seq_lengths": seq_lengths, "mask": mask, "time_major": time_major, "rngs": rngs}
        carries = [None] * len(self.layers) if initial_carry is None else initial_carry
        if len(carries) != len(self.layers):
            raise ValueError(f"Stack has {len(self.layers)} layers and got a carry of {len(carries)} entries")
        ys, last = xs, []
        for i, (layer, carry) in enumerate(zip(self.layers, carries, strict=True)):
            below = ys
            x = self.dropout(below, rngs=rngs) if i > 0 else below
            carry, ys = layer(x, initial_carry=carry, return_carry=True, **options)
            if self.residual and i > 0:
                ys = ys + below
            last.append(carry)
        return_carry = self.return_carry if return_carry is None else return_carry
        return (tuple(last), ys) if return_carry else ys
