"""Cells in continuous time.

`ltc` and `cfc` read x = (x [B, D], elapsed [B]), or just x for steps of length 1; `ct_rnn` has steps of a fixed length.
Docstrings show one step as in `gated.py`, with the carry h [B, H].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from seqjax.arrays import Array, Tree, carry_dtype, like
from seqjax.cells.building import check_positive, check_size, gated_cell, initial_params, one_product, project_dense
from seqjax.core import Cell, Const
from seqjax.hints import Gated
from seqjax.identity import recorded
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, orthogonal, per_gate


def _timed(cell: str, x: Tree, hidden: int, dtype: DTypeLike) -> tuple[Array, Array]:
    """The features [..., D], and for each unit [..., H] the time since the step before, which is 1 where none is given.

    (Gates that see one number per sequence have a gradient for it that sums over the units: no work for `native`.)
    """
    given = x if isinstance(x, tuple) else (x, None)
    if len(given) != 2 or not hasattr(given[0], "dtype"):
        raise TypeError(f"{cell} takes an array x, or x = (x, elapsed), got the tree {jax.tree.structure(x)}")
    x, elapsed = given
    elapsed = jnp.ones(x.shape[:-1], x.dtype) if elapsed is None else elapsed
    if not jnp.issubdtype(elapsed.dtype, jnp.floating) or elapsed.shape != x.shape[:-1]:
        raise ValueError(
            f"{cell} takes x = (x, elapsed), elapsed a floating {list(x.shape[:-1])} for x {list(x.shape)}, "
            f"got {elapsed.dtype}{list(elapsed.shape)}"
        )
    elapsed = jnp.expand_dims(elapsed.astype(carry_dtype(dtype)), -1)
    return x, jnp.broadcast_to(elapsed, (*elapsed.shape[:-1], hidden))


@recorded
def ltc(
    hidden: int,
    unfolds: int = 6,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    a: Initializer = jax.nn.initializers.normal(1.0),
    log_tau: Initializer = jax.nn.initializers.uniform(3.0),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Liquid time-constant network (Hasani et al. 2021, arXiv 2006.04439)::

        x, elapsed = x
        dt = elapsed[:, None] / unfolds
        for _ in range(unfolds):
            f = sigmoid(x @ w_x + h @ w_h + b)
            h = (h + dt * f * a) / (1 + dt * (exp(-log_tau) + f))
        y = h

    The differential equation dh/dt = -(1 / tau + f(x, h)) * h + f(x, h) * a, whose input sets the time constant as well
    as what it goes to, by the paper's fused semi-implicit Euler steps. They stay between the smallest and the largest
    of a, h and 0, regardless of the length of a step.

    Args:
      hidden: number of units H.
      unfolds: Euler steps between two inputs, each with a matrix product.
      w_x: initializer of the input weights [D, H].
      w_h: initializer of the recurrent weights [H, H].
      a: initializer of the targets a [H], called with the shape [1, H].
      log_tau: initializer of the logarithm [H] of the time constants, called with the shape [1, H]: from 1 to 20.
      b: bias initializer, of the one gate "input".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H]. It takes `x = (x, elapsed)`: x [B, D], and elapsed [B], floating and not negative,
      the time since the step before, in the unit of tau; or just x, for steps of length 1.

    Raises:
      ValueError: for numbers below 1, or an elapsed of another shape or dtype.
    """
    hidden = check_size("ltc", hidden)
    unfolds = check_size("ltc", unfolds, "unfolds")
    initial = initial_params(hidden, ("input",), w_x, w_h, b, dtype)

    def init(key, in_features):
        key, k_a, k_tau = jax.random.split(key, 3)
        own = {
            "a": per_gate(a, k_a, 1, 1, hidden, dtype)[0],
            "log_tau": per_gate(log_tau, k_tau, 1, 1, hidden, dtype)[0],
        }
        return {**initial(key, in_features), **own}

    def project(params, x):
        x, elapsed = _timed("ltc", x, hidden, params["a"].dtype)
        a, log_tau = (params[name].astype(elapsed.dtype) for name in ("a", "log_tau"))
        return project_dense(params, x), elapsed / unfolds, Const((a, jnp.exp(-log_tau)))

    def after(h, z, us):
        """The carry after as many Euler steps as there are products."""
        z, dt, const = z
        a, rate = (like(value, h) for value in const.value)
        for u in us:
            f = sigmoid(z + u)
            h = (h + dt * f * a) / (1 + dt * (rate + f))
        return h

    hint = Gated(lambda params: (params["w_h"],) * unfolds, (after,) * unfolds, after)
    return gated_cell(init, hint, project=project)


@recorded
def cfc(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    w_o: Initializer = glorot_uniform(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Closed-form continuous-time network (Hasani et al. 2022, arXiv 2106.13898)::

        x, elapsed = x
        v = tanh(x @ w_x + h @ w_h + b)
        f, g, k = split(v @ w_o + b_o, 3)
        gate = sigmoid(-f * elapsed[:, None])
        h = gate * tanh(g) + (1 - gate) * tanh(k)
        y = h

    In place of a solver's steps the carry goes from tanh(g) to tanh(k) as time passes (back, where f is negative), by a
    gate that approximates the solution of the `ltc`. The backbone v has one layer of H units, and the heads f, g and k
    one layer each. Two short steps are not one long step: the step is learned, not a flow.

    Args:
      hidden: number of units H, of the backbone too.
      w_x: initializer of the input weights [D, H].
      w_h: initializer of the recurrent weights [H, H].
      w_o: initializer of the weights [H, H] of each head.
      b: bias initializer, of the one gate "candidate", the backbone. The heads' bias b_o [3H] starts at 0.
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H], and inputs as `ltc`.

    Raises:
      ValueError: for a number of units below 1, or an elapsed of another shape or dtype.
    """
    hidden = check_size("cfc", hidden)
    initial = initial_params(hidden, ("candidate",), w_x, w_h, b, dtype)

    def init(key, in_features):
        key, k_o = jax.random.split(key)
        heads = {"w_o": per_gate(w_o, k_o, hidden, 3, hidden, dtype), "b_o": jnp.zeros((3 * hidden,), dtype)}
        return {**initial(key, in_features), **heads}

    def project(params, x):
        x, elapsed = _timed("cfc", x, hidden, params["b_o"].dtype)
        return project_dense(params, x), elapsed, Const(params["b_o"].astype(elapsed.dtype))

    def gates(h, z, us):
        _, elapsed, b_o = z
        f, g, k = jnp.split(us[1] + like(b_o.value, us[1]), 3, axis=-1)
        gate = sigmoid(-f * elapsed)
        return gate * jnp.tanh(g) + (1 - gate) * jnp.tanh(k)

    hint = Gated(
        weights=lambda params: (params["w_h"], params["w_o"]),
        stages=(lambda h, z, us: h, lambda h, z, us: jnp.tanh(z[0] + us[0])),
        gates=gates,
    )
    return gated_cell(init, hint, project=project)


@recorded
def ct_rnn(
    hidden: int,
    dt: float = 0.1,
    activation: Callable[[Array], Array] = jnp.tanh,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    log_tau: Initializer = jax.nn.initializers.uniform(3.0),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Continuous-time network with a time constant a unit, by Euler steps (Funahashi & Nakamura 1993)::

        h = h + dt / exp(log_tau) * (activation(x @ w_x + h @ w_h + b) - h)
        y = h

    "Approximation of dynamical systems by continuous time recurrent neural networks"; tau dh/dt = -h + activation(...).
    A step of dt = tau is the simple network, and only for dt < 2 tau do the steps stay bounded.

    Args:
      hidden: number of units H.
      dt: time between two inputs, above 0.
      activation: any elementwise function.
      w_x: initializer of the input weights [D, H].
      w_h: initializer of the recurrent weights [H, H].
      log_tau: initializer of the logarithm [H] of the time constants, called with the shape [1, H]: from 1 to 20.
      b: bias initializer, of the one gate "candidate".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H].
    """
    hidden = check_size("ct_rnn", hidden)
    check_positive("ct_rnn", "dt", dt)
    initial = initial_params(hidden, ("candidate",), w_x, w_h, b, dtype)

    def init(key, in_features):
        key, k_tau = jax.random.split(key)
        return {**initial(key, in_features), "log_tau": per_gate(log_tau, k_tau, 1, 1, hidden, dtype)[0]}

    def project(params, x):
        rate = dt * jnp.exp(-params["log_tau"].astype(carry_dtype(params["log_tau"].dtype)))
        return project_dense(params, x), Const(rate)

    def gates(h, z, u, write):
        z, rate = z
        return h + like(rate.value, h) * (write(activation(z + u)) - h)

    hint = one_product(gates)
    return gated_cell(init, hint, project=project)
