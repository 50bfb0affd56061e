"""Skipped steps and restarted sequences: padding, and documents one after the other in a stream."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Params, Tree, like
from seqjax.cells.layers import stack
from seqjax.core import Cell, Const, inner, is_const, select
from seqjax.hints import Complex, Write, around, is_complex, multiply
from seqjax.identity import recorded

Affine = Callable[[Params, Tree], tuple[Carry, Carry]]
"""The hint `affine`: `(params, z) -> (a, b)`."""


def over_layers(cell: Cell, wrapped: tuple[Cell, ...], pick: Callable[[Tree, int], Tree]) -> Cell:
    """A stack of wrapped layers, where layer i takes `(x, pick(extra, i))` and passes `extra` on to the next."""
    last = len(wrapped) - 1

    def layer(i: int, wrap: Cell) -> Cell:
        narrow = inner(wrap, lambda z: z[0])
        passing = narrow._replace(
            project=lambda params, x: (wrap.project(params, (x[0], pick(x[1], i))), x[1]),
            readout=lambda params, carry, z: (narrow.readout(params, carry, z), z[1]),
        )
        return passing if i < last else passing._replace(readout=narrow.readout)

    # The space of the inputs is that of the whole: here only the layers above it have to agree.
    layers = (layer(i, wrap)._replace(space=wrapped[-1].space) for i, wrap in enumerate(wrapped))
    return stack(*layers)._replace(init=cell.init, space=cell.space)


@recorded
def masked(cell: Cell) -> Cell:
    """Skip padding: `x = (x, mask)`, mask bool [B] per step.

    Where the mask is false the carry is kept and the output is 0, and the content of the padding, NaN included, affects
    neither outputs nor gradients. The mask may have holes.

    Example:
      >>> cell = seqjax.wrappers.masked(seqjax.cells.min_gru(4))
      >>> params = cell.init(jax.random.key(0), 3)
      >>> xs, mask = jnp.ones((3, 1, 3)).at[2].set(jnp.nan), jnp.array([[True], [True], [False]])
      >>> carry, ys = seqjax.unroll(cell, params, None, (xs, mask))
      >>> bool((carry == ys[1]).all()), ys[2].tolist()
      (True, [[0.0, 0.0, 0.0, 0.0]])
    """
    if cell.layers:
        return over_layers(cell, tuple(masked(layer) for layer in cell.layers), lambda mask, i: mask)
    base = inner(cell, lambda z: z[0])
    gated, affine, outer = base.gated, base.affine, base.outer

    def project(params, x):
        x, mask = x
        # A gradient of 0 times NaN is NaN, so the padding must not reach the cell at all.
        return cell.project(params, _zero_padding(mask, x)), mask

    def transition(params, carry, z):
        return select(z[1], base.transition(params, carry, z), carry)

    def readout(params, carry, z):
        return _zero_padding(z[1], base.readout(params, carry, z))

    return base._replace(
        project=project,
        transition=transition,
        readout=readout,
        gated=gated and around(gated, leave=lambda carry, z, new: select(z[1], new, carry)),
        affine=affine and partial(_masked_affine, affine),
        outer=outer and outer._replace(write=partial(_masked_write, outer.write)),
        vocabulary=0,  # tokens in the padding are not read
    )


def _zero_padding(mask: Array, tree: Tree) -> Tree:
    """0 where the mask is false; a Const belongs to no step and is kept."""

    def zero(leaf):
        return leaf if is_const(leaf) else select(mask, leaf, jnp.zeros_like(leaf))

    return jax.tree.map(zero, tree, is_leaf=is_const)


def _masked_affine(affine: Affine, params: Params, z: Tree) -> tuple[Carry, Carry]:
    """(a, b) of a step; (1, 0), which keeps the carry, where the mask is false."""

    def one(leaf):
        if is_complex(leaf):
            return Complex(jnp.ones_like(leaf.re), jnp.zeros_like(leaf.im))
        return jnp.ones_like(leaf)

    a, b = affine(params, z)
    ones = jax.tree.map(one, a, is_leaf=is_complex)
    return select(z[1], a, ones), select(z[1], b, jax.tree.map(jnp.zeros_like, b))


def _masked_write(write: Callable[[Params, Tree], Write], params: Params, z: Tree) -> Write:
    """The write of a step; one that keeps the carry, where the mask is false."""
    step = write(params, z)
    return select(z[1], step, step.idle())


@recorded
def reset(cell: Cell) -> Cell:
    """Restart at borders: `x = (x, border)`, border bool [B] per step.

    Where the border is true the carry is replaced by the initial carry before the step, so that one stream can hold
    many documents without a gradient from one to another. Under `unroll(..., reverse=True)` the step that comes first
    in a document is its last one, so the border belongs there.

    Example:
      >>> cell = seqjax.wrappers.reset(seqjax.cells.min_gru(4))
      >>> params = cell.init(jax.random.key(0), 3)
      >>> borders = jnp.array([True, False, False, True, False])[:, None]  # documents of 3 and 2 steps
      >>> _, ys = seqjax.unroll(cell, params, None, (jnp.ones((5, 1, 3)), borders))
      >>> bool((ys[3:] == ys[:2]).all())
      True
    """
    if cell.layers:
        return over_layers(cell, tuple(reset(layer) for layer in cell.layers), lambda border, i: border)
    base = inner(cell, lambda z: z[0])
    gated, affine, outer = base.gated, base.affine, base.outer

    def project(params, x):
        x, border = x
        return cell.project(params, x), border, Const(cell.initial_carry(params, ()))

    return base._replace(
        project=project,
        transition=lambda params, carry, z: base.transition(params, _restarted(carry, z), z),
        gated=gated and around(gated, lambda carry, z, us: (_restarted(carry, z), z, us)),
        affine=affine and partial(_reset_affine, affine),
        outer=outer and outer._replace(write=partial(_reset_write, outer.write)),
    )


def _restarted(carry: Carry, z: Tree) -> Carry:
    """The carry before a step; the initial one at a border."""
    _, border, start = z
    return select(border, jax.tree.map(like, start.value, carry), carry)


def _reset_affine(affine: Affine, params: Params, z: Tree) -> tuple[Carry, Carry]:
    """(a, b) of a step; (0, the carry after this step from the initial one) at a border."""
    _, border, start = z
    a, b = affine(params, z)
    fresh = jax.tree.map(jnp.add, multiply(a, jax.tree.map(like, start.value, a)), b)
    return select(border, jax.tree.map(jnp.zeros_like, a), a), select(border, fresh, b)


def _reset_write(write: Callable[[Params, Tree], Write], params: Params, z: Tree) -> Write:
    """The write of a step; one that first forgets the carry, at a border."""
    step = write(params, z).decaying()
    return select(z[1], step.fresh(), step)
