"""Cells whose products are convolutions: the carry is an image, or a line, of vectors.

The axes of the image stand between batch and features and are the `space` of the cell. The docstrings show one step as
in `gated.py`, with `convolve(x, w)[p] = sum_k x[p + k - (K - 1) // 2] @ w[k]` over all axes of the image, 0 outside.
"""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from seqjax.arrays import Array, carry_dtype, check_features, like, operand_dtype
from seqjax.cells.building import LSTMCarry, as_size, check_size, lstm_gates
from seqjax.core import Cell
from seqjax.identity import recorded
from seqjax.initializers import BiasInitializer, Initializer, gate_bias, glorot_uniform, orthogonal, per_gate


def convolve(x: Array, w: Array) -> Array:
    """The sum over a kernel at every place of an image: x [..., *space, D], w [*kernel, D, G] to [..., *space, G].

    Returned in `carry_dtype(w.dtype)`; see above for the position of the kernel and the padding of the image.
    """
    dtype = operand_dtype(w.dtype)
    # In a loop on a CPU XLA's convolution takes ten to twenty times as long as the product of all shifts of x.
    return jax.lax.platform_dependent(x.astype(dtype), w.astype(dtype), cpu=_by_shifts, default=_by_convolution)


def _by_shifts(x: Array, w: Array) -> Array:
    """`convolve` as one product, of all shifts of x."""
    *kernel, _, outputs = w.shape
    n = len(kernel)
    space = x.shape[-n - 1 : -1]
    border = [(0, 0)] * (x.ndim - n - 1) + [((k - 1) // 2, k // 2) for k in kernel] + [(0, 0)]
    x = jnp.pad(x, border)
    shifts = itertools.product(*map(range, kernel))
    seen = [x[(..., *(slice(i, i + m) for i, m in zip(s, space, strict=True)), slice(None))] for s in shifts]
    return jnp.matmul(jnp.concatenate(seen, -1), w.reshape(-1, outputs), preferred_element_type=carry_dtype(w.dtype))


def _by_convolution(x: Array, w: Array) -> Array:
    """`convolve` by the convolution of XLA."""
    *kernel, _, outputs = w.shape
    n = len(kernel)
    image, filters = (0, n + 1, *range(1, n + 1)), (n + 1, n, *range(n))
    y = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[-n - 1 :]),
        w,
        window_strides=(1,) * n,
        padding="SAME",
        dimension_numbers=jax.lax.ConvDimensionNumbers(image, filters, image),
        preferred_element_type=carry_dtype(w.dtype),
    )
    return y.reshape(*x.shape[:-1], outputs)


def _check_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, tuple) or not sizes or any(as_size(size) < 1 for size in sizes):
        raise ValueError(f"conv_lstm takes a {name} of positive sizes, one for each axis, got {sizes!r}")
    return tuple(map(as_size, sizes))


@recorded
def conv_lstm(
    hidden: int,
    space: tuple[int, ...],
    kernel: int | tuple[int, ...] = 3,
    *,
    w_x: Initializer = glorot_uniform(),
    w_h: Initializer = orthogonal(),
    b: BiasInitializer = gate_bias(forget=1.0),
    dtype: DTypeLike = jnp.float32,
) -> Cell:
    """Convolutional LSTM (Shi et al. 2015, arXiv 1506.04214)::

        i, f, g, o = split(convolve(x, w_x) + convolve(h, w_h) + b, 4)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        y = h

    Inputs are [T, B, W, D] for the space (W,) and [T, B, H, W, D] for (H, W), masks [T, B]. As in Keras there are no
    peepholes, and the image keeps its size. The params do not depend on the space, so that those of a cell for small
    images also run one for large images.

    Args:
      hidden: number of units (channels) at each place of the image.
      space: size of the image, one number for each axis.
      kernel: size of the kernels, one number for all axes or one for each.
      w_x: initializer of the input kernels, called with the shape [kernel * D, hidden] for each gate; w_x is
        [*kernel, D, 4 * hidden].
      w_h: initializer of the recurrent kernels [*kernel, hidden, 4 * hidden], called in the same way.
      b: bias initializer, of the gates "input", "forget", "candidate" and "output".
      dtype: of the params.

    Returns:
      A cell with the carry `LSTMCarry(h, c)`, each [B, *space, hidden]. It has no hint: a convolution is no matrix
      product of the carry.

    Raises:
      ValueError: for sizes that are not positive, or a kernel of another number of axes than the space.
    """
    hidden = check_size("conv_lstm", hidden)
    space = _check_sizes("space", space)
    kernel = _check_sizes("kernel", kernel if isinstance(kernel, tuple) else (kernel,) * len(space))
    if len(kernel) != len(space):
        raise ValueError(f"conv_lstm takes a kernel of as many axes as the space {space}, got {kernel}")
    gates = ("input", "forget", "candidate", "output")

    def draw(w, key, rows):
        return per_gate(w, key, math.prod(kernel) * rows, 4, hidden, dtype).reshape(*kernel, rows, 4 * hidden)

    def init(key, in_features):
        k_x, k_h, k_b = jax.random.split(key, 3)
        return {"w_x": draw(w_x, k_x, in_features), "w_h": draw(w_h, k_h, hidden), "b": b(k_b, gates, hidden, dtype)}

    def initial_carry(params, batch_shape):
        zeros = jnp.zeros((*batch_shape, *space, hidden), carry_dtype(params["w_h"].dtype))
        return LSTMCarry(zeros, zeros)

    def project(params, x):
        w = params["w_x"]
        check_features(x, w[(0,) * len(space)], space)
        z = convolve(x, w)
        return z + like(params["b"].astype(z.dtype), z)

    return Cell(
        init=init,
        initial_carry=initial_carry,
        project=project,
        transition=lambda params, carry, z: lstm_gates(carry, z + convolve(carry.h, params["w_h"])),
        readout=lambda params, carry, z: carry.h,
        space=space,
    )
