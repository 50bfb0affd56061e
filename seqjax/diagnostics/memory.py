"""Memory of the carry: decay of each unit, saturation of the gates, dimension of the trajectory."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Params, Tree, matmul
from seqjax.core import Cell, open_dense, over_time, project_all, scan_const
from seqjax.diagnostics.spectrum import each_sequence
from seqjax.hints import Gated, is_complex
from seqjax.unrolling import unroll


class Saturation(NamedTuple):
    """How often a gate is nearly closed and nearly open, for each of its units.

    Attributes:
      low: the share of steps and sequences with an activation below `eps`, [H].
      high: the share above `1 - eps`, [H].
    """

    low: Array
    high: Array


def _path(cell: Cell, params: Params, carry: Carry, xs: Tree) -> tuple[Tree, Carry, Carry]:
    """z_t, h_{t-1} and h_t of all steps."""

    def body(carry, z):
        after = cell.transition(params, carry, z)
        return after, (carry, after)

    zs = project_all(cell, params, xs)
    before, after = scan_const(body, carry, zs)[1]
    return zs, before, after


@partial(jax.jit, static_argnames="cell")
def trajectory(cell: Cell, params: Params, carry: Carry, xs: Tree) -> Carry:
    """The carries h_1 ... h_T for inputs xs [T, B, ...]: a tree like the carry, leaves [T, B, ...].

    Example:
      >>> cell = seqjax.cells.rnn(1, lambda u: u, w_h=seqjax.initializers.identity(0.5))  # h' = h / 2 + input
      >>> params = cell.init(jax.random.key(0), 1)
      >>> seqjax.diagnostics.trajectory(cell, params, jnp.ones((1, 1)), jnp.zeros((3, 1, 1))).ravel().tolist()
      [0.5, 0.25, 0.125]
    """
    return _path(cell, params, carry, xs)[2]


def _direct_derivative(gated: Gated, params: Params, carry: Carry, z: Tree) -> Carry:
    """The derivative of each leaf of the next carry with respect to itself, the products u held fixed."""
    us = ()
    for stage, w in zip(gated.stages, gated.weights(params), strict=True):
        us = (*us, matmul(stage(carry, z, us), w))
    leaves, treedef = jax.tree.flatten(carry)

    def of_leaf(i):
        tangent = [jnp.ones_like(leaf) if j == i else jnp.zeros_like(leaf) for j, leaf in enumerate(leaves)]
        _, out = jax.jvp(lambda h: gated.gates(h, z, us), (carry,), (treedef.unflatten(tangent),))
        return jax.tree.leaves(out)[i]

    return treedef.unflatten([of_leaf(i) for i in range(len(leaves))])


@partial(jax.jit, static_argnames="cell")
def half_lives(cell: Cell, params: Params, carry: Carry, xs: Tree) -> Carry:
    """The number of steps after which half of what a unit holds is left, considering only its gates.

        a_t = dh_t/dh_{t-1} of the unit, matrix products held fixed;   half life = log 2 / -mean_t log |a_t|

    a_t is the forget gate of an LSTM (leaf c) and the update gate of a GRU; Mahto et al. 2021 (arXiv 2009.12727) derive
    time scales of language from it. A leaf that no gate keeps, h of an LSTM or of a simple network, has half life 0; a
    unit that does not decay, inf.

    Args:
      cell: a cell with the hint `gated` or `affine`, or a stack of such cells.
      params: its params.
      carry: the carry before the first step, leaves [B, ...].
      xs: inputs [T, B, ...].

    Returns:
      A tree like the carry, leaves [B, ...]; one leaf for each `Complex`. Where the arithmetic around the products
      mixes units (a normalization of the carry), a_t is the sum of the derivatives with respect to all units.

    Raises:
      ValueError: for a cell without these hints.

    Example:
      >>> cell = seqjax.cells.lstm(1, b=seqjax.initializers.gate_bias(forget=3.0))
      >>> params = cell.init(jax.random.key(0), 1)
      >>> params = {name: w if name == "b" else 0 * w for name, w in params.items()}  # constant gates
      >>> found = seqjax.diagnostics.half_lives(cell, params, cell.initial_carry(params, (1,)), jnp.ones((5, 1, 1)))
      >>> found.h.item(), round(found.c.item(), 1)  # log 2 / -log sigmoid(3)
      (0.0, 14.3)
    """
    if cell.layers:
        found = []
        for layer, p, c in zip(cell.layers, params, carry, strict=True):
            found.append(half_lives(layer, p, c, xs))
            _, xs = unroll(layer, p, c, xs, method="scan")
        return tuple(found)
    zs, before, _ = _path(cell, params, carry, xs)
    if cell.affine is not None:
        decays = over_time(lambda z, affine=cell.affine: affine(params, z)[0], zs)
    elif cell.gated is not None:
        decays = over_time(partial(_direct_derivative, cell.gated, params), before, zs)
    else:
        raise ValueError("half_lives needs a cell with the hint gated or affine, which define what the gates keep")

    def half_life(a):
        size = jnp.hypot(a.re, a.im) if is_complex(a) else jnp.abs(a)
        rate = -jnp.log(size).mean(0)
        return jnp.where(rate > 0, jnp.log(2.0).astype(rate.dtype) / rate, jnp.inf)

    return jax.tree.map(half_life, decays, is_leaf=is_complex)


# Primitives that only wrap a program; the programs of loops and branches are not searched.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call", "custom_vjp_call")


def _sigmoids(f: Callable) -> Callable[..., tuple[Array, ...]]:
    """`f`, returning the values of all logistic sigmoids that it computes, in the order of its program."""

    def run(*args):
        found = []

        def evaluate(jaxpr, consts, values):
            env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))

            def read(v):
                return v.val if isinstance(v, jex.Literal) else env[v]

            for e in jaxpr.eqns:
                ins = [read(v) for v in e.invars]
                if e.primitive.name in _CALLS:
                    inner = e.params.get("jaxpr", e.params.get("call_jaxpr"))
                    closed = inner if hasattr(inner, "consts") else jex.ClosedJaxpr(inner, ())
                    outs = evaluate(closed.jaxpr, closed.consts, ins)
                else:
                    outs = e.primitive.bind(*ins, **e.primitive.get_bind_params(e.params))
                    outs = outs if e.primitive.multiple_results else [outs]
                if e.primitive.name == "logistic":
                    found.extend(outs)
                env.update(zip(e.outvars, outs, strict=True))
            return [read(v) for v in jaxpr.outvars]

        program = jax.make_jaxpr(f)(*args)
        evaluate(program.jaxpr, program.consts, jax.tree.leaves(args))
        return tuple(found)

    return run


@partial(jax.jit, static_argnames="cell")
def gate_saturation(
    cell: Cell, params: Params, carry: Carry, xs: Tree, eps: float | Array = 0.1
) -> tuple[Saturation, ...]:
    """How often the gates are saturated (Karpathy, Johnson & Fei-Fei 2015, arXiv 1506.02078).

    The gates are the logistic sigmoids in the projection and the transition of any cell: they are read from its
    program, in program order. (An LSTM here computes forget, input, output; a GRU reset, update.) Gates of another form
    (a hard sigmoid, the exponential of a log_sigmoid) are not found, nor are those in the readout, or inside a loop or
    branch.

    Args:
      cell: any cell.
      params: its params.
      carry: the carry before the first step, leaves [B, ...].
      xs: inputs [T, B, ...].
      eps: the distance from 0 or 1 below which a gate counts as saturated.

    Returns:
      One `Saturation` per gate, averaged over steps and sequences; none for a cell without sigmoids.

    Example:
      >>> cell = seqjax.cells.lstm(4, b=seqjax.initializers.gate_bias(forget=100.0))
      >>> params = cell.init(jax.random.key(0), 3)
      >>> carry, xs = cell.initial_carry(params, (2,)), jnp.zeros((5, 2, 3))
      >>> forget, write, output = seqjax.diagnostics.gate_saturation(cell, params, carry, xs)
      >>> forget.high.tolist(), output.high.tolist()
      ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0])
    """

    def step(carry, x):
        return cell.transition(params, carry, open_dense(cell.project(params, x)))

    def single(carry, xs):
        _, before, _ = _path(cell, params, carry, xs)
        gates = over_time(_sigmoids(step), before, xs)
        counts = [((gate < eps).astype(gate.dtype), (gate > 1 - eps).astype(gate.dtype)) for gate in gates]
        return tuple(Saturation(low.mean(0), high.mean(0)) for low, high in counts)

    return jax.tree.map(lambda share: share.mean(0), each_sequence(single, xs, 0)(carry, xs))


@jax.jit
def participation_ratio(states: Array) -> Array:
    """The effective number of dimensions of the states: `tr(C)^2 / tr(C^2)`, C [H, H] their covariance.

    Rajan, Abbott & Sompolinsky 2010; Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and
    measurement". 1 for states on a line, H if all directions have the same variance.

    Args:
      states: [..., H], at least two that differ (nan otherwise), such as a leaf [T, B, H] of `trajectory`.

    Returns:
      [], between 1 and H.

    Example:
      >>> line = jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
      >>> round(seqjax.diagnostics.participation_ratio(line).item(), 3)
      1.0
    """
    rows = states.reshape(-1, states.shape[-1])
    rows = rows - rows.mean(0, keepdims=True)
    covariance = jnp.matmul(rows.T, rows, precision="highest")
    # Scaled, so that no square leaves the range of the dtype.
    covariance = covariance / jnp.trace(covariance)
    return 1 / jnp.square(covariance).sum()
