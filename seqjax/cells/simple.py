"""Cells with few weights: one gate or none, or a recurrence that keeps the units apart.

Docstrings show one step as in `gated.py`, with the carry h [B, H].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike

from seqjax.arrays import Array, carry_dtype, like
from seqjax.cells.building import (
    check_positive,
    check_size,
    gated_cell,
    gated_hint,
    initial_params,
    one_product,
    project_dense,
)
from seqjax.core import Cell, Const
from seqjax.identity import recorded
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, orthogonal, per_gate


@recorded
def rnn(
    hidden: int,
    activation: Callable[[Array], Array] = jnp.tanh,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Simple recurrent network (Elman 1990)::

        h = activation(x @ w_x + h @ w_h + b)
        y = h

    Args:
      hidden: number of units H.
      activation: any elementwise function.
      w_x: initializer of the input weights [D, H].
      w_h: initializer of the recurrent weights [H, H].
      b: bias initializer, of the one gate "candidate".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H]. Elman's separate output map f(W h + b) is `wrappers.with_head(rnn(H), O, f)`.
      The IRNN (Le, Jaitly & Hinton 2015, arXiv 1504.00941) is `rnn(H, jax.nn.relu, w_h=initializers.identity())`.

    Example:
      >>> irnn = seqjax.cells.rnn(2, jax.nn.relu, w_h=seqjax.initializers.identity())
      >>> irnn.init(jax.random.key(0), 3)["w_h"].tolist()
      [[1.0, 0.0], [0.0, 1.0]]
    """
    hidden = check_size("rnn", hidden)
    hint = one_product(lambda h, z, u, write: write(activation(z + u)))
    return gated_cell(initial_params(hidden, ("candidate",), w_x, w_h, b, dtype), hint)


@recorded
def ind_rnn(
    hidden: int,
    activation: Callable[[Array], Array] = jax.nn.relu,
    *,
    w_x: Initializer = glorot_uniform(),
    u: Initializer = jax.nn.initializers.uniform(1.0),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Independently recurrent network: each unit sees only its own past (Li et al. 2018, arXiv 1803.04831)::

        h = activation(x @ w_x + u * h + b)
        y = h

    Units meet in the next layer. A unit keeps or loses its past as u**T, so for T steps the paper draws u from
    U(0, 2**(1/T)), which is `u=jax.nn.initializers.uniform(2 ** (1 / T))`, and clips it there after each update.

    Args:
      hidden: number of units H.
      activation: any elementwise function.
      w_x: initializer of the input weights [D, H].
      u: initializer of the recurrent weights [H], called with the shape [1, H].
      b: bias initializer, of the one gate "candidate".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H]. It is gated with no matrix product of the carry at all.
    """
    hidden = check_size("ind_rnn", hidden)

    def init(key, in_features):
        k_x, k_u, k_b = jax.random.split(key, 3)
        return {
            "w_x": per_gate(w_x, k_x, in_features, 1, hidden, dtype),
            "u": per_gate(u, k_u, 1, 1, hidden, dtype)[0],
            "b": b(k_b, ("candidate",), hidden, dtype),
        }

    def gates(h, z, us, write):
        z, u = z
        return write(activation(z + like(u.value.astype(h.dtype), h) * h))

    hint = gated_hint(lambda params: (), (), gates)
    return gated_cell(
        init,
        hint,
        initial_carry=lambda params, batch_shape: jnp.zeros((*batch_shape, hidden), carry_dtype(params["u"].dtype)),
        project=lambda params, x: (project_dense(params, x), Const(params["u"])),
    )


@recorded
def ugrnn(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Update gate network: a GRU without reset (Collins, Sohl-Dickstein & Sussillo 2016, arXiv 1611.09913)::

        z, n = split(x @ w_x + h @ w_h + b, 2)
        h = sigmoid(z) * h + (1 - sigmoid(z)) * tanh(n)
        y = h

    The gates are "update" (near 1 keeps the carry) and "candidate"; arguments and carry as in `gru`.
    """
    hidden = check_size("ugrnn", hidden)

    def gates(h, z, u, write):
        z, n = jnp.split(z + u, 2, axis=-1)
        return sigmoid(z) * h + sigmoid(-z) * write(jnp.tanh(n))

    hint = one_product(gates)
    return gated_cell(initial_params(hidden, ("update", "candidate"), w_x, w_h, b, dtype), hint)


@recorded
def mgu(
    hidden: int,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Minimal gated unit: one gate both resets and writes (Zhou et al. 2016, arXiv 1603.09420)::

        x_f, x_n = split(x @ w_x + b, 2)
        w_f, w_n = split(w_h, 2)
        f = sigmoid(x_f + h @ w_f)
        h = (1 - f) * h + f * tanh(x_n + (f * h) @ w_n)
        y = h

    The gates are "input" (f, which writes where it is near 1; the paper calls it the forget gate) and "candidate".
    Arguments and carry as in `gru`.
    """
    hidden = check_size("mgu", hidden)

    def gate(z, us):
        return sigmoid(z[..., :hidden] + us[0])

    def gates(h, z, us, write):
        f = gate(z, us)
        return (1 - f) * h + f * write(jnp.tanh(z[..., hidden:] + us[1]))

    hint = gated_hint(
        weights=lambda params: (params["w_h"][:, :hidden], params["w_h"][:, hidden:]),
        stages=(lambda h, z, us: h, lambda h, z, us: gate(z, us) * h),
        gates=gates,
    )
    return gated_cell(initial_params(hidden, ("input", "candidate"), w_x, w_h, b, dtype), hint)


@recorded
def janet(
    hidden: int,
    beta: float = 1.0,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(forget=1.0),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """JANET, an LSTM with only a forget gate (van der Westhuizen & Lasenby 2018, arXiv 1804.04849)::

        s, n = split(x @ w_x + h @ w_h + b, 2)
        h = sigmoid(s) * h + (1 - sigmoid(s - beta)) * tanh(n)
        y = h

    A positive `beta` writes more than it forgets, and |h| stays below exp(beta); with 0 the cell is `ugrnn`. The paper
    initializes the biases with `chrono`, for the longest dependency in the data.

    Args:
      hidden: number of units H.
      beta: by how much the pre-activation of the forget gate is lowered where it writes; at least 0.
      w_x: initializer of the input weights [D, H] of each gate.
      w_h: initializer of the recurrent weights [H, H] of each gate.
      b: bias initializer, of the gates "forget" and "candidate".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H], which is both the memory c and the output of the paper.

    Raises:
      ValueError: unless beta is finite and at least 0.

    Example:
      >>> cell = seqjax.cells.janet(3, b=seqjax.initializers.chrono(784))
      >>> params = cell.init(jax.random.key(0), 2)
      >>> params["w_h"].shape, params["b"][3:].tolist()
      ((3, 6), [0.0, 0.0, 0.0])
    """
    hidden = check_size("janet", hidden)
    if not 0 <= beta < jnp.inf:
        raise ValueError(f"janet takes a finite beta of at least 0, got {beta}")

    def gates(h, z, u, write):
        s, n = jnp.split(z + u, 2, axis=-1)
        return sigmoid(s) * h + sigmoid(beta - s) * write(jnp.tanh(n))

    hint = one_product(gates)
    return gated_cell(initial_params(hidden, ("forget", "candidate"), w_x, w_h, b, dtype), hint)


@recorded
def antisymmetric_rnn(
    hidden: int,
    step: float = 0.1,
    diffusion: float = 0.01,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Antisymmetric network: a stable differential equation, by Euler steps (Chang et al. 2019, arXiv 1902.09689)::

        h = h + step * tanh(x @ w_x + h @ (w_h - w_h.T) - diffusion * h + b)
        y = h

    The eigenvalues of w_h - w_h.T are imaginary, so the past neither fades nor explodes; `diffusion` makes up for what
    Euler steps add.

    Args:
      hidden: number of units H.
      step: length of a step, above 0.
      diffusion: strength of the decay, at least 0.
      w_x: initializer of the input weights [D, H].
      w_h: initializer of w_h [H, H], of which only the antisymmetric part is used.
      b: bias initializer, of the one gate "candidate".
      dtype: of the params.

    Returns:
      A cell with the carry h [B, H].

    Raises:
      ValueError: unless step is positive and diffusion at least 0.
    """
    hidden = check_size("antisymmetric_rnn", hidden)
    check_positive("antisymmetric_rnn", "step", step)
    if not diffusion >= 0:
        raise ValueError(f"antisymmetric_rnn takes a diffusion of at least 0, got {diffusion}")
    hint = gated_hint(
        weights=lambda params: (params["w_h"] - params["w_h"].T,),
        stages=(lambda h, z, us: h,),
        gates=lambda h, z, us, write: h + step * write(jnp.tanh(z + us[0] - diffusion * h)),
    )
    return gated_cell(initial_params(hidden, ("candidate",), w_x, w_h, b, dtype), hint)
