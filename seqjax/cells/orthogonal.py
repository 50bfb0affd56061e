"""A network whose recurrent matrix is orthogonal for all values of its params."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from seqjax.arrays import Array, carry_dtype, check_features, like
from seqjax.cells.building import check_size, gated_cell, initial_params
from seqjax.core import Cell, Const, Dense
from seqjax.hints import Gated
from seqjax.identity import recorded
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, rotations

_product = partial(jnp.matmul, precision="highest")
_HALVINGS = 16  # at most: enough for a matrix of the norm 65536


def _exponential(a: Array) -> Array:
    """exp(a) of a skew-symmetric a [H, H]: a Taylor series of a / 2^n, squared n times. NaN where n > 16.

    Computed with products only: `jax.scipy.linalg.expm` solves a system, and under `vmap` that is one of the batched
    decompositions of which `initializers.orthogonal` tells.
    """
    one = jnp.eye(len(a), dtype=a.dtype)
    halvings = jnp.ceil(jnp.log2(jnp.maximum(jnp.abs(a).sum(0).max(), 1.0)))
    scaled = a * like(jnp.exp2(-halvings), a)
    w = one
    for k in range(10 if a.dtype.itemsize <= 4 else 18, 0, -1):
        w = one + _product(scaled, w) / k

    def square(w, n):
        return jax.lax.cond(n < halvings, lambda w: _product(w, w), lambda w: w, w), None

    w, _ = jax.lax.scan(square, w, jnp.arange(_HALVINGS, dtype=a.dtype))
    # A step of Newton and Schulz takes away what rounding has added to the singular values, all of which are 1.
    w = _product(w, 1.5 * one - 0.5 * _product(w.T, w))
    return jnp.where(halvings <= _HALVINGS, w, jnp.nan)


@recorded
def exp_rnn(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = rotations(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Network with an orthogonal recurrent matrix, expRNN (Lezcano-Casado & Martinez-Rubio 2019, arXiv 1901.08428)::

        from numpy import maximum, sign, triu
        from scipy.linalg import expm
        a = triu(w_h, 1)
        u = x @ w_x + h @ expm(a - a.T)
        h = sign(u) * maximum(abs(u) + b, 0)
        y = h

    The exponential of a skew-symmetric matrix is orthogonal for all values of the params, so any optimizer works, and
    the past neither vanishes nor explodes in the product. The activation is modReLU (Arjovsky, Shah & Bengio 2016,
    arXiv 1511.06464), which at b = 0 is no activation at all. The paper takes smaller steps for w_h than for other
    weights.

    Args:
      hidden: number of units H.
      w_x: initializer of the input weights [D, H].
      w_h: initializer of w_h [H, H], of which only the entries above the diagonal are used.
      b: bias initializer, of the one gate "candidate": the threshold of modReLU, below which it is 0 where negative.
      dtype: of the params. The exponential is taken, and multiplied by, in at least float32.

    Returns:
      A cell with the carry h [B, H]. A solver takes the exponential once, not at every step.
    """
    hidden = check_size("exp_rnn", hidden)

    def weights(params):
        a = jnp.triu(params["w_h"].astype(carry_dtype(params["w_h"].dtype)), 1)
        return (_exponential(a - a.T),)

    def project(params, x):
        check_features(x, params["w_x"])
        return Dense(x, Const(params["w_x"]), Const(jnp.zeros_like(params["b"]))), Const(params["b"])

    def gates(h, z, us):
        z, b = z
        u = z + us[0]
        return jnp.sign(u) * jax.nn.relu(jnp.abs(u) + like(b.value.astype(u.dtype), u))

    hint = Gated(weights, (lambda h, z, us: h,), gates)
    return gated_cell(initial_params(hidden, ("candidate",), w_x, w_h, b, dtype), hint, project=project)
