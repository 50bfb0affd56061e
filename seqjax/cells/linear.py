"""Cells that are linear in their carry: `h_t = a_t * h_{t-1} + b_t`, with a and b computed only from the input.

Each has the `affine` hint, so the solver `associative` unrolls it in O(log T) parallel steps. `peephole_sru` stands
beside `sru`, but is not linear and has no such hint. Docstrings show one step as in `gated.py`; the carry is h [B, H].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jax.typing import DTypeLike

from seqjax.arrays import Array, carry_dtype, check_features, dense, exportable, like
from seqjax.cells.building import LSTMCarry, check_size, gated_cell, gated_hint, project_dense
from seqjax.core import Cell, Const
from seqjax.hints import affine_transition
from seqjax.identity import recorded
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, per_gate


def _init(hidden: int, gates: tuple[str, ...], w_x: Initializer, b: BiasInitializer, dtype: DTypeLike) -> Callable:
    """The init of a cell with one input product: weights w_x [D, G*H] and b [G*H], of G gates."""

    def init(key, in_features):
        k_x, k_b = jax.random.split(key)
        return {
            "w_x": per_gate(w_x, k_x, in_features, len(gates), hidden, dtype),
            "b": b(k_b, gates, hidden, dtype),
        }

    return init


def _linear(
    hidden: int,
    gates: tuple[str, ...],
    w_x: Initializer,
    b: BiasInitializer,
    dtype: DTypeLike,
    keep_and_write: Callable[..., tuple[Array, Array]],
    readout: Callable[..., Array] = lambda h, *gates: h,
) -> Cell:
    """A cell of one input product, cut into gates: `a, b = keep_and_write(*gates)` and `y = readout(h, *gates)`."""

    def affine(params, z):
        return keep_and_write(*jnp.split(z, len(gates), axis=-1))

    return Cell(
        init=_init(hidden, gates, w_x, b, dtype),
        initial_carry=lambda params, batch_shape: jnp.zeros((*batch_shape, hidden), carry_dtype(params["w_x"].dtype)),
        project=lambda params, x: dense(x, params["w_x"], params["b"]),
        transition=affine_transition(affine),
        readout=lambda params, h, z: readout(h, *jnp.split(z, len(gates), axis=-1)),
        affine=affine,
    )


@recorded
def min_gru(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Minimal GRU without dependence of the gates on the carry (Feng et al. 2024, arXiv 2410.01201)::

        z, n = split(x @ w_x + b, 2)
        h = (1 - sigmoid(z)) * h + sigmoid(z) * n
        y = h

    Args:
      hidden: number of units H.
      w_x: initializer of the weights [D, H] of each gate.
      b: bias initializer, of the gates "input" (z, which writes) and "candidate".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H].

    Example:
      >>> cell = seqjax.cells.min_gru(4)
      >>> params = cell.init(jax.random.key(0), 3)
      >>> xs = jnp.ones((1000, 2, 3))
      >>> _, ys = seqjax.unroll(cell, params, None, xs, method="associative")  # log T parallel steps on an accelerator
      >>> bool(jnp.allclose(ys, seqjax.unroll(cell, params, None, xs, method="scan")[1], atol=1e-6))
      True
    """
    hidden = check_size("min_gru", hidden)
    return _linear(hidden, ("input", "candidate"), w_x, b, dtype, lambda z, n: (sigmoid(-z), sigmoid(z) * n))


@recorded
def min_lstm(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Minimal LSTM, its two gates normalized to the sum 1 (Feng et al. 2024, arXiv 2410.01201)::

        f, i, n = split(x @ w_x + b, 3)
        f, i = sigmoid(f), sigmoid(i)
        h = (f * h + i * n) / (f + i)
        y = h

    Arguments and carry as in `min_gru`; the gates are "forget", "input" and "candidate".
    """
    hidden = check_size("min_lstm", hidden)

    def keep_and_write(f, i, n):
        # f / (f + i) is a sigmoid too, and has no 0 / 0 where both gates are shut.
        d = log_sigmoid(f) - log_sigmoid(i)
        return sigmoid(d), sigmoid(-d) * n

    return _linear(hidden, ("forget", "input", "candidate"), w_x, b, dtype, keep_and_write)


@recorded
def qrnn(
    hidden: int,
    output_gate: bool = True,
    window: int = 1,
    *,
    w_x: Initializer = glorot_uniform(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Quasi-recurrent network, fo-pooling (Bradbury et al. 2016, arXiv 1611.01576)::

        f, n, o = split(x @ w_x + b, 3)
        h = sigmoid(f) * h + (1 - sigmoid(f)) * tanh(n)
        y = sigmoid(o) * h

    Without `output_gate` this is f-pooling: y = h, and no o. With a `window` of k, the paper's masked convolution of
    width k, x is the last k inputs one after the other, the oldest first, and w_x is [k D, 3 H]; the carry is then
    `QRNNCarry(h, x)`, in which the cell is not affine: it loses that hint and is scanned. (To keep it, concatenate the
    inputs of all steps beforehand and take a window of 1.) Other arguments and carry as in `min_gru`; the gates are
    "forget", "candidate" and "output".

    Raises:
      ValueError: for no units, or a window below 1.
    """
    hidden = check_size("qrnn", hidden)
    window = check_size("qrnn", window, "steps in its window")

    def keep_and_write(f, n, *o):
        return sigmoid(f), sigmoid(-f) * jnp.tanh(n)

    if output_gate:
        gates, readout = ("forget", "candidate", "output"), lambda h, f, n, o: sigmoid(o) * h
    else:
        gates, readout = ("forget", "candidate"), lambda h, f, n: h
    cell = _linear(hidden, gates, w_x, b, dtype, keep_and_write, readout)
    return cell if window == 1 else _over_windows(cell, window)


@exportable
class QRNNCarry(NamedTuple):
    """Carry of a QRNN with a window: output h [B, H], and the last inputs x [B, window, D], the oldest first."""

    h: Array
    x: Array


def _over_windows(cell: Cell, window: int) -> Cell:
    """`cell` on the concatenation of the last `window` inputs, with 0 before the first."""

    def initial_carry(params, batch_shape):
        h, features = cell.initial_carry(params, batch_shape), params["w_x"].shape[0] // window
        return QRNNCarry(h, jnp.zeros((*batch_shape, window, features), h.dtype))

    def project(params, x):
        w = params["w_x"]
        check_features(x, w[: w.shape[0] // window])
        return x.astype(carry_dtype(w.dtype))

    def seen(params, x):
        return cell.project(params, x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1]))

    def transition(params, carry, x):
        x = jnp.concatenate([carry.x[..., 1:, :], x[..., None, :]], axis=-2)
        return QRNNCarry(cell.transition(params, carry.h, seen(params, x)), x)

    return Cell(
        init=lambda key, in_features: cell.init(key, window * in_features),
        initial_carry=initial_carry,
        project=project,
        transition=transition,
        readout=lambda params, carry, x: cell.readout(params, carry.h, seen(params, carry.x)),
    )


_SRU_GATES = ("forget", "candidate", "reset", "highway")


@recorded
def sru(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Simple recurrent unit, whose output is a highway around it (Lei et al. 2017, arXiv 1709.02755, first version)::

        f, n, r, s = split(x @ w_x + b, 4)
        h = sigmoid(f) * h + (1 - sigmoid(f)) * n
        y = sigmoid(r) * tanh(h) + (1 - sigmoid(r)) * s

    Gates see only the input, as in the first version of the paper; later ones add peepholes `v * h`, with which the
    recurrence is no longer linear. The highway s is a product of x, so that its width may be another than H. Arguments
    and carry as in `min_gru`; the gates are "forget", "candidate", "reset" and "highway".
    """
    hidden = check_size("sru", hidden)
    return _linear(
        hidden,
        _SRU_GATES,
        w_x,
        b,
        dtype,
        lambda f, n, r, s: (sigmoid(f), sigmoid(-f) * n),
        lambda h, f, n, r, s: sigmoid(r) * jnp.tanh(h) + sigmoid(-r) * s,
    )


@recorded
def peephole_sru(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Simple recurrent unit whose gates see the cell state (Lei et al. 2018, arXiv 1709.02755, last version)::

        f, n, r, s = split(x @ w_x + b, 4)
        p_f, p_r = p
        f, r = sigmoid(f + p_f * c), sigmoid(r + p_r * c)
        c = f * c + (1 - f) * n
        h = r * c + (1 - r) * s
        y = h

    Both gates see the state before the step. Units meet in the next layer, and there is no matrix product of the carry,
    but it is not linear in it either: `sru` is, which has no peepholes. The highway s is a product of x, so that its
    width may be another than H, and the paper's factor on it is left to `w_x`.

    Args:
      hidden: number of units H.
      w_x: initializer of the weights [D, H] of each gate.
      b: bias initializer, of the gates "forget", "candidate", "reset" and "highway".
      dtype: of the params. The peepholes p [2, H] start at 0.

    Returns:
      A cell with the carry `LSTMCarry(h, c)`.
    """
    hidden = check_size("peephole_sru", hidden)
    init = _init(hidden, _SRU_GATES, w_x, b, dtype)

    def initial_carry(params, batch_shape):
        zeros = jnp.zeros((*batch_shape, hidden), carry_dtype(params["p"].dtype))
        return LSTMCarry(zeros, zeros)

    def gates(carry, z, us, write):
        z, p = z
        f, n, r, s = jnp.split(z, 4, axis=-1)
        p_f, p_r = (like(row.astype(f.dtype), f) for row in p.value)
        f, r = sigmoid(f + p_f * carry.c), sigmoid(r + p_r * carry.c)
        c = f * carry.c + (1 - f) * write(n)
        return LSTMCarry(r * c + (1 - r) * s, c)

    return gated_cell(
        lambda key, in_features: {**init(key, in_features), "p": jnp.zeros((2, hidden), dtype)},
        gated_hint(lambda params: (), (), gates),
        initial_carry=initial_carry,
        project=lambda params, x: (project_dense(params, x), Const(params["p"])),
    )
