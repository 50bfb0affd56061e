"""Skipped steps and restarted sequences: padding, and documents one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.arrays import Tree, like
from seqjax.cells.layers import stack
from seqjax.core import Cell, Const, inner, is_const, select
from seqjax.hints import Complex, around, is_complex, multiply
from seqjax.identity import recorded


def over_layers(cell: Cell, wrapped: tuple[Cell, ...], pick: Callable[[Tree, int], Tree]) -> Cell:
    """A stack of wrapped layers, where layer i takes `(x, pick(extra, i))` and hands `extra` on."""
    last = len(wrapped) - 1

    def layer(i: int, wrap: Cell) -> Cell:
        narrow = inner(wrap, lambda z: z[0])
        hand_on = narrow._replace(
            project=lambda params, x: (wrap.project(params, (x[0], pick(x[1], i))), x[1]),
            readout=lambda params, carry, z: (narrow.readout(params, carry, z), z[1]),
        )
        return hand_on if i < last else hand_on._replace(readout=narrow.readout)

    return stack(*(layer(i, wrap) for i, wrap in enumerate(wrapped)))._replace(init=cell.init, space=cell.space)


@recorded
def masked(cell: Cell) -> Cell:
    """Skip padding: `x = (x, mask)`, mask bool [B] per step.

    Where the mask is false the carry stays as it is and the output is 0, and whatever the padding holds, NaN included,
    touches neither an output nor a gradient. The mask may have holes.

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
    gated = base.gated
    affine: Any = base.affine
    outer: Any = base.outer

    def blank(mask, tree):
        """0 where the mask is false; a Const is no part of any one step."""

        def clean(leaf):
            return leaf if is_const(leaf) else select(mask, leaf, jnp.zeros_like(leaf))

        return jax.tree.map(clean, tree, is_leaf=is_const)

    def project(params, x):
        x, mask = x
        # A gradient that is 0 times NaN is NaN, so the padding must not reach the cell at all.
        return cell.project(params, blank(mask, x)), mask

    def ones(a):
        """The a of a step that keeps the carry."""

        def one(leaf):
            if is_complex(leaf):
                return Complex(jnp.ones_like(leaf.re), jnp.zeros_like(leaf.im))
            return jnp.ones_like(leaf)

        return jax.tree.map(one, a, is_leaf=is_complex)

    def transition(params, carry, z):
        return select(z[1], base.transition(params, carry, z), carry)

    def readout(params, carry, z):
        return blank(z[1], base.readout(params, carry, z))

    def still(params, z):
        a, b = affine(params, z)
        return (
            select(z[1], a, ones(a)),
            select(z[1], b, jax.tree.map(jnp.zeros_like, b)),
        )

    def idle(params, z):
        step = outer.write(params, z)
        return select(z[1], step, step.idle())

    return base._replace(
        project=project,
        transition=transition,
        readout=readout,
        gated=gated and around(gated, leave=lambda carry, z, new: select(z[1], new, carry)),
        affine=affine and still,
        outer=outer and outer._replace(write=idle),
        vocabulary=0,  # what the padding holds is not read
    )


@recorded
def reset(cell: Cell) -> Cell:
    """Restart at borders: `x = (x, border)`, border bool [B] per step.

    Where the border is true the carry is replaced by the initial carry before the step, so that many documents can lie
    in one stream without a gradient from one to another. Under `unroll(..., reverse=True)` the step that comes first in
    a document is its last one, so that is where the border belongs.

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
    gated = base.gated
    affine: Any = base.affine
    outer: Any = base.outer

    def project(params, x):
        x, border = x
        return cell.project(params, x), border, Const(cell.initial_carry(params, ()))

    def before(carry, z):
        _, border, start = z
        return select(border, jax.tree.map(like, start.value, carry), carry)

    def anew(params, z):
        _, border, start = z
        a, b = affine(params, z)
        fresh = jax.tree.map(jnp.add, multiply(a, jax.tree.map(like, start.value, a)), b)
        return select(border, jax.tree.map(jnp.zeros_like, a), a), select(border, fresh, b)

    def forget(params, z):
        step = outer.write(params, z).decaying()
        return select(z[1], step.fresh(), step)

    return base._replace(
        project=project,
        transition=lambda params, carry, z: base.transition(params, before(carry, z), z),
        gated=gated and around(gated, lambda carry, z, us: (before(carry, z), z, us)),
        affine=affine and anew,
        outer=outer and outer._replace(write=forget),
    )
