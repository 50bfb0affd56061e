"""Cells whose carry is a matrix: they store a value under a key, by one outer product per step, and read with a query.

There are N heads, keys and queries of K numbers and values of V; the docstrings show one step as in `gated.py`. What
surrounds the recurrence in the papers (convolution, normalization and gating of the output) is left to other layers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jax.typing import DTypeLike

from seqjax.arrays import Array, Tree, carry_dtype, dense, exportable, like
from seqjax.cells.building import as_size, largest
from seqjax.core import Cell
from seqjax.hints import Outer, Write, outer_transition, read
from seqjax.identity import recorded
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform


def _check_sizes(name: str, **sizes: Any) -> list[int]:
    if any(as_size(size) < 1 for size in sizes.values()):
        raise ValueError(f"{name} takes positive sizes, got {sizes}")
    return [as_size(size) for size in sizes.values()]


def _initial(widths: dict[str, int], w: Initializer, dtype: DTypeLike, **biases: Callable) -> Callable:
    """The init of weights [D, width] of these names, and of biases `key -> array`."""

    def init(key, in_features):
        k_w, k_b = jax.random.split(key)
        keys = jax.random.split(k_w, len(widths))
        weights = {
            name: w(k, (in_features, width), carry_dtype(dtype)).astype(dtype)
            for k, (name, width) in zip(keys, widths.items(), strict=True)
        }
        return weights | {name: b(k_b) for name, b in biases.items()}

    return init


def _zeros(params: Tree, *shape: int) -> Array:
    return jnp.zeros(shape, carry_dtype(params["w_q"].dtype))


def _heads(u: Array, heads: int) -> Array:
    """[..., N * K] as [..., N, K]."""
    return u.reshape(*u.shape[:-1], heads, u.shape[-1] // heads)


@jax.custom_jvp
def _silu(u: Array) -> Array:
    return u * sigmoid(u)


@_silu.defjvp
def _silu_jvp(values, tangents):
    # As one factor: u times a large tangent may overflow where sigmoid'(u) is 0.
    (u,), (du,) = values, tangents
    return _silu(u), sigmoid(u) * (1 + u * sigmoid(-u)) * du


def _flat(y: Array) -> Array:
    """[..., N, V] as [..., N * V]."""
    return y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1])


@recorded
def gated_linear_attention(
    heads: int,
    keys: int,
    values: int,
    *,
    temperature: float = 16.0,
    w: Initializer = glorot_uniform(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Gated linear attention (Yang et al. 2023, arXiv 2312.06635)::

        B, N, K, V = h.shape
        q, k = ((x @ w).reshape(B, N, K, 1) for w in (w_q, w_k))
        v = (x @ w_v).reshape(B, N, 1, V)
        a = sigmoid(x @ w_a + b_a).reshape(B, N, K, 1) ** (1 / temperature)
        h = a * h + k * v
        y = (q * h).sum(2).reshape(B, N * V)

    Args:
      heads: number of heads N.
      keys: numbers in the key of a head K.
      values: numbers in the value of a head V.
      temperature: 16 makes the forget gate a slow one.
      w: initializer of the weights w_q, w_k, w_a [D, N K] and w_v [D, N V]. (The paper's w_a has rank 16.)
      b: bias initializer, of the gate "forget" of N K units.
      dtype: of the params.

    Returns:
      A cell with the carry h [B, N, K, V], affine in it, and the output y [B, N V].

    Raises:
      ValueError: unless the sizes and temperature are positive.
    """
    heads, keys, values = _check_sizes("gated_linear_attention", heads=heads, keys=keys, values=values)
    if not temperature > 0:
        raise ValueError(f"gated_linear_attention needs a positive temperature, got {temperature}")
    width = heads * keys

    def project(params, x):
        q, k, v = (_heads(dense(x, params[name]), heads) for name in ("w_q", "w_k", "w_v"))
        log_a = log_sigmoid(dense(x, params["w_a"], params["b_a"])) / temperature
        return Write(q, k, v, _heads(log_a, heads))

    def affine(params, z):
        b = z.key[..., :, None] * z.value[..., None, :]
        return like(jnp.exp(z.log_decay)[..., None], b), b

    outer = Outer(lambda params, z: z)

    return Cell(
        init=_initial(
            {"w_q": width, "w_k": width, "w_v": heads * values, "w_a": width},
            w,
            dtype,
            b_a=lambda key: b(key, ("forget",), width, dtype),
        ),
        initial_carry=lambda params, batch: _zeros(params, *batch, heads, keys, values),
        project=project,
        transition=outer_transition(outer),
        readout=lambda params, h, z: _flat(read(z.query, h)),
        affine=affine,
        outer=outer,
    )


@recorded
def delta_net(
    heads: int,
    keys: int,
    values: int,
    *,
    w: Initializer = glorot_uniform(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """DeltaNet: what is stored under a key is corrected, not added to (Yang et al. 2024, arXiv 2406.06484)::

        B, N, K, V = h.shape
        q, k = ((x @ w).reshape(B, N, K, 1) for w in (w_q, w_k))
        q, k = (u * sigmoid(u) for u in (q, k))
        q, k = (u / ((u * u).sum(2, keepdims=True) + 1e-6) ** 0.5 for u in (q, k))
        v = (x @ w_v).reshape(B, N, 1, V)
        rate = sigmoid(x @ w_rate).reshape(B, N, 1, 1)
        h = h + rate * k * (v - (k * h).sum(2, keepdims=True))
        y = (q * h).sum(2).reshape(B, N * V)

    One step of gradient descent, at the rate of the step, on |k^T h - v|^2 / 2. The carry is multiplied by
    I - rate k k^T, which is no elementwise product, so there is no `affine` hint; `chunkwise` runs it.

    Args:
      heads: number of heads N.
      keys: numbers in the key of a head K.
      values: numbers in the value of a head V.
      w: initializer of the weights w_q, w_k [D, N K], w_v [D, N V] and w_rate [D, N].
      dtype: of the params.

    Returns:
      A cell with the carry h [B, N, K, V] and the output y [B, N V].
    """
    heads, keys, values = _check_sizes("delta_net", heads=heads, keys=keys, values=values)

    def normal(u):
        u = _silu(u)
        size = largest(u)
        u = u / like(size, u)
        return u * like(jax.lax.rsqrt(jnp.square(u).sum(-1, keepdims=True) + jnp.square(1e-3 / size)), u)

    def project(params, x):
        q, k, v, rate = (_heads(dense(x, params[name]), heads) for name in ("w_q", "w_k", "w_v", "w_rate"))
        k = normal(k)
        return Write(normal(q), like(sigmoid(rate), k) * k, v, erase=k)

    outer = Outer(lambda params, z: z)
    return Cell(
        init=_initial({"w_q": heads * keys, "w_k": heads * keys, "w_v": heads * values, "w_rate": heads}, w, dtype),
        initial_carry=lambda params, batch: _zeros(params, *batch, heads, keys, values),
        project=project,
        transition=outer_transition(outer),
        readout=lambda params, h, z: _flat(read(z.query, h)),
        outer=outer,
    )


@jax.custom_jvp
def _divide(a: Array, b: Array) -> Array:
    return a / b


@_divide.defjvp
def _divide_jvp(values, tangents):
    (a, b), (da, db) = values, tangents
    ratio = a / b
    return ratio, (da - ratio * db) / b


def quotient(a: Array, b: Array) -> Array:
    """a / b for a [..., V] and b [..., 1], not negative: 0 / 0 is 0, and no square of b is in the gradient."""
    return _divide(a, like(jnp.maximum(b, jnp.finfo(b.dtype).tiny ** 0.5), a))


@exportable
class MLSTMCarry(NamedTuple):
    """Carry of the mLSTM: memory c [B, N, K, V] and normalizer n [B, N, K], both times exp(-m), and m [B, N]."""

    c: Array
    n: Array
    m: Array


@recorded
def mlstm(
    heads: int,
    keys: int,
    values: int,
    *,
    w: Initializer = glorot_uniform(),
    b: BiasInitializer = gate_bias(forget=3.0),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """LSTM with a matrix memory and an exponential input gate (Beck et al. 2024, arXiv 2405.04517)::

        from numpy import log, maximum
        B, N, K, V = c.shape
        q, k = ((x @ w + b_w).reshape(B, N, K) for w, b_w in ((w_q, b_q), (w_k, b_k)))
        v = (x @ w_v + b_v).reshape(B, N, 1, V)
        i, f = split(x @ w_gates + b, 2)
        m_before, m = m, maximum(maximum(log(sigmoid(f)) + m, i + log(maximum(abs(k).max(-1), 1))), 0)
        i, f = exp(i - m)[..., None], sigmoid(f)[..., None] * exp(m_before - m)[..., None]
        k = k / K**0.5
        c = f[..., None] * c + i[..., None] * k[..., None] * v
        n = f * n + i * k
        scale = maximum(abs((q * n).sum(-1, keepdims=True)), exp(-m)[..., None])
        y = sigmoid(x @ w_o + b_o) * ((q[..., None] * c).sum(2) / scale).reshape(B, N * V)

    The stabilizer m keeps the input gate times the key, and so all that is stored, of the size of the values or below,
    and changes no output: exp(-m) is the 1 of the paper's max(|q^T n|, 1) on the scale of c and n. It stays above 0
    here, so that exp(-m) cannot overflow either.

    Args:
      heads: number of heads N.
      keys: numbers in the key of a head K.
      values: numbers in the value of a head V.
      w: initializer of the weights w_q, w_k [D, N K], w_v, w_o [D, N V] and w_gates [D, 2 N].
      b: bias initializer, of the gates "input" and "forget" of N units. (The authors spread the forget bias from 3 to
        6 over the heads.) The other biases b_q, b_k [N K], b_v and b_o [N V] start at 0.
      dtype: of the params.

    Returns:
      A cell with the carry `MLSTMCarry(c, n, m)` and the output y [B, N V]. m makes it nonlinear.
    """
    heads, keys, values = _check_sizes("mlstm", heads=heads, keys=keys, values=values)

    def project(params, x):
        q, k, v = (_heads(dense(x, params[f"w_{name}"], params[f"b_{name}"]), heads) for name in "qkv")
        i, f = (u[..., None] for u in jnp.split(dense(x, params["w_gates"], params["b"]), 2, axis=-1))
        size = largest(k)
        i = i + jnp.log(size)
        k = k / like(size, k) * like(jnp.exp(jnp.minimum(i, 0.0)) / keys**0.5, k)
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
        o = sigmoid(dense(x, params["w_o"], params["b_o"]))
        size = largest(q)
        return Write(q / like(size, q), k, v, log_sigmoid(f), log_write=jnp.maximum(i, 0.0)), o, size

    def pack(carry):
        return jax.tree.map(lambda c, n: jnp.concatenate([c, n[..., None]], -1), carry.c, carry.n), carry.m[..., None]

    def unpack(h, m):
        c, n = (jax.tree.map(lambda h, i=i: h[..., i], h) for i in (slice(-1), -1))
        return MLSTMCarry(c, n, m[..., 0])

    outer = Outer(lambda params, z: z[0], pack, unpack)

    def readout(params, carry, z):
        write, o, size = z
        r = read(write.query, pack(carry)[0])
        return o * _flat(quotient(r[..., :-1], jnp.maximum(jnp.abs(r[..., -1:]), jnp.exp(-carry.m)[..., None] / size)))

    return Cell(
        init=_initial(
            {"w_q": heads * keys, "w_k": heads * keys, "w_v": heads * values}
            | {"w_gates": 2 * heads, "w_o": heads * values},
            w,
            dtype,
            b=lambda key: b(key, ("input", "forget"), heads, dtype),
            b_q=lambda key: jnp.zeros((heads * keys,), dtype),
            b_k=lambda key: jnp.zeros((heads * keys,), dtype),
            b_v=lambda key: jnp.zeros((heads * values,), dtype),
            b_o=lambda key: jnp.zeros((heads * values,), dtype),
        ),
        initial_carry=lambda params, batch: MLSTMCarry(
            _zeros(params, *batch, heads, keys, values),
            _zeros(params, *batch, heads, keys),
            _zeros(params, *batch, heads),
        ),
        project=project,
        transition=outer_transition(outer),
        readout=readout,
        outer=outer,
    )
