"""Noise on the carry itself: zoneout, Gaussian noise. `Cell -> (Cell, sample)`, as in `regularizers`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from seqjax.arrays import Array, Carry, Key, Tree, carry_dtype, like
from seqjax.cells.layers import stack
from seqjax.core import Cell, Const, features, inner, open_const
from seqjax.draws import check_rate
from seqjax.hints import around, is_complex
from seqjax.identity import recorded
from seqjax.regularizers import Sample, each_layer

__all__ = [
    "carry_noise",
    "zoneout",
    "zoneout_mean",
]


def _noisy_carry(cell: Cell, name: str, change: Callable, change_affine: Callable) -> Cell:
    """`cell` with the carry `change(noise, before, after)` after each step, leaf by leaf.

    `change_affine(noise, a, b)` is the same change of the affine hint. The caller replaces `project`, whose z must be
    `(z, noise)`.
    """
    base = inner(cell, lambda z: z[0])
    gated, affine = base.gated, base.affine
    if gated is None and affine is None:
        raise ValueError(f"{name} needs a cell with a hint: the carry of one without may hold more than its state")

    def changed(z, before, after):
        def leaf(noise, old, new):
            return change(like(noise.astype(new.dtype), new), like(old, new), new)

        return jax.tree.map(leaf, open_const(z[1]), before, after)

    def changed_affine(affine, params, z):
        a, b = affine(params, z)
        noise = jax.tree.map(lambda noise, b: like(noise.astype(b.dtype), b), open_const(z[1]), b)
        return tuple(jax.tree.map(lambda *leaf, i=i: change_affine(*leaf)[i], noise, a, b) for i in (0, 1))

    return base._replace(
        transition=lambda params, carry, z: changed(z, carry, base.transition(params, carry, z)),
        gated=gated and around(gated, leave=lambda carry, z, new: changed(z, carry, new)),
        affine=affine and partial(changed_affine, affine),
        outer=None,
    )


def _for_each_leaf(draw: Callable[..., Array], key: Key, carry: Carry, xs: Tree, *trees: Tree) -> Tree:
    """`draw(key, shape, dtype, *leaves)` for every leaf of the carry, with a leading time axis."""
    leaves, treedef = jax.tree.flatten(carry)
    steps = features(xs).shape[0]
    keys = treedef.unflatten(list(jax.random.split(key, len(leaves))))
    return jax.tree.map(lambda h, k, *more: draw(k, (steps, *h.shape), h.dtype, *more), carry, keys, *trees)


def _zoned_out(cell: Cell) -> Cell:
    """`h <- k * h_before + (1 - k) * h_after`, where k is the noise."""
    return _noisy_carry(
        cell,
        "zoneout",
        lambda k, before, after: k * before + (1 - k) * after,
        lambda k, a, b: (k + (1 - k) * a, (1 - k) * b),
    )


def _rates(rate: Any, carry: Carry) -> Carry:
    """A rate for each leaf of the carry."""
    if any(is_complex(node) for node in jax.tree.leaves(carry, is_leaf=is_complex)):
        raise ValueError("zoneout keeps real numbers, and this carry holds complex ones")
    if jax.tree.structure(rate) == jax.tree.structure(carry):
        return rate
    if jax.tree.structure(rate) != jax.tree.structure(0):
        raise ValueError(f"zoneout takes one rate or one for each leaf of {jax.tree.structure(carry)}, got {rate}")
    return jax.tree.map(lambda _: rate, carry)


@recorded
def zoneout(cell: Cell, rate: Any) -> tuple[Cell, Sample]:
    """Keep random units of the carry unchanged (Krueger et al. 2016, arXiv 1606.01305).

        h_t = k * h_{t-1} + (1 - k) * transition(h_{t-1}, z_t),   k ~ Bernoulli(rate), [B, H] per step

    For evaluation the paper replaces k by its mean: `zoneout_mean(cell, rate)`.

    Args:
      cell: a cell with a hint, or a stack of such cells.
      rate: probability of keeping a unit, in [0, 1); or one for each leaf of the carry, `LSTMCarry(h=0.05, c=0.5)`.
        Around a stack it applies to every layer.

    Returns:
      The noisy cell, which takes `x = (x, noise)`, and `sample(key, carry, xs) -> noise`, k for all steps.

    Raises:
      ValueError: for a rate outside [0, 1), rates that do not fit the carry, or a cell without hints.

    Example:
      >>> cell = seqjax.cells.lstm(4)
      >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 2, 3))
      >>> noisy, sample = seqjax.noise.zoneout(cell, seqjax.cells.LSTMCarry(h=0.05, c=0.5))
      >>> noise = sample(jax.random.key(1), cell.initial_carry(params, (2,)), xs)
      >>> noise.c.shape, sorted(set(noise.c.ravel().tolist()))  # new at every step
      ((5, 2, 4), [0.0, 1.0])
      >>> _, ys = seqjax.unroll(noisy, params, None, (xs, noise))
    """
    jax.tree.map(check_rate, rate)
    if cell.layers:
        return each_layer(cell, *(zoneout(layer, rate) for layer in cell.layers))

    def draw(key, shape, dtype, rate):
        return jax.random.bernoulli(key, jnp.asarray(rate, carry_dtype(dtype)), shape).astype(dtype)

    noisy = _zoned_out(cell)._replace(project=lambda params, x: (cell.project(params, x[0]), x[1]))
    return noisy, lambda key, carry, xs: _for_each_leaf(draw, key, carry, xs, _rates(rate, carry))


@recorded
def zoneout_mean(cell: Cell, rate: Any) -> Cell:
    """The cell for evaluation after `zoneout`: `h_t = rate * h_{t-1} + (1 - rate) * transition(h_{t-1}, z_t)`.

    It takes x as the bare cell does. Arguments and errors as in `zoneout`.

    Example:
      >>> cell = seqjax.cells.min_gru(4)
      >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((1, 2, 3))
      >>> _, slower = seqjax.unroll(seqjax.noise.zoneout_mean(cell, 0.75), params, None, xs)
      >>> bool(jnp.allclose(slower, 0.25 * seqjax.unroll(cell, params, None, xs)[1]))
      True
    """
    jax.tree.map(check_rate, rate)
    if cell.layers:
        return stack(*(zoneout_mean(layer, rate) for layer in cell.layers))._replace(init=cell.init)

    def project(params, x):
        carry = cell.initial_carry(params, ())
        rates = jax.tree.map(lambda h, r: jnp.asarray(r, h.dtype), carry, _rates(rate, carry))
        return cell.project(params, x), jax.tree.map(Const, rates)

    return _zoned_out(cell)._replace(project=project)


@recorded
def carry_noise(cell: Cell, scale: Any) -> tuple[Cell, Sample]:
    """Gaussian noise on the carry at each step (Jim, Giles & Horne 1996).

        h_t = transition(h_{t-1}, z_t) + scale * e_t,   e_t ~ N(0, 1), [B, H]

    As in "An analysis of noise in recurrent neural networks: convergence and generalization". Noise is added to every
    leaf of the carry. `scale` is the standard deviation, at least 0; other arguments, result and errors as in
    `zoneout`.

    Example:
      >>> noisy, sample = seqjax.noise.carry_noise(seqjax.cells.min_gru(4), 0.1)
      >>> noise = sample(jax.random.key(0), jnp.zeros((1000, 4)), jnp.ones((5, 1000, 3)))
      >>> noise.shape, round(noise.std().item(), 2)
      ((5, 1000, 4), 0.1)
    """
    if not isinstance(scale, Tracer) and not float(scale) >= 0:
        raise ValueError(f"the scale of noise is at least 0, got {scale}")
    if cell.layers:
        return each_layer(cell, *(carry_noise(layer, scale) for layer in cell.layers))

    def draw(key, shape, dtype):
        drawn = jax.random.normal(key, shape, carry_dtype(dtype))
        return (like(jnp.asarray(scale, drawn.dtype), drawn) * drawn).astype(dtype)

    noisy = _noisy_carry(
        cell, "carry_noise", lambda noise, before, after: after + noise, lambda noise, a, b: (a, b + noise)
    )
    wrapped = noisy._replace(project=lambda params, x: (cell.project(params, x[0]), x[1]))
    return wrapped, partial(_for_each_leaf, draw)
