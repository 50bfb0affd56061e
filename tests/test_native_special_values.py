"""No rewrite of the compiled loop changes a result for any float: NaN, infinities, zeros of both signs, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import unroll
from seqjax.core import Cell
from seqjax.hints import Gated
from seqjax.solvers.native import compiler
from tests.agree import compiled

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


def grid(dtype):
    """Every special value of a dtype and its neighbours, of both signs."""
    info = jnp.finfo(dtype)
    edge = [float(np.log(float(info.max))), float(-np.log(float(info.tiny)))]  # where exp leaves the numbers
    near = [value * factor for value in edge for factor in (1 - 1e-3, 1 - 1e-6, 1 + 1e-6, 1 + 1e-3)]
    positive = [0.0, float(info.tiny), 1e-20, 1e-5, 0.5, 0.625, 1, 1.5, 2, 8, 20, 88, 1e4, 1e18, float(info.max)]
    positive += [*near, np.inf]
    return np.array([*positive, *(-value for value in positive), np.nan], dtype)


UNARY = {
    "exp": jnp.exp,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "expm1": jnp.expm1,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "erf": jax.lax.erf,
    "erfc": jax.lax.erfc,
    "abs": jnp.abs,
    "sign": jnp.sign,
    "neg": jnp.negative,
    "square": jnp.square,
    "cube": lambda x: x**3,
    "inverse": lambda x: x**-1,
    "inverse square": lambda x: x**-2,
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "times 0": lambda x: x * 0.0,
    "times 1": lambda x: x * 1.0,
    "0 times": lambda x: 0.0 * x,
    "plus 0": lambda x: x + 0.0,
    "plus -0": lambda x: x + -0.0,
    "minus 0": lambda x: x - 0.0,
    "0 minus": lambda x: 0.0 - x,
    "minus itself": lambda x: x - x,
    "over itself": lambda x: x / x,
    "0 over": lambda x: 0.0 / x,
    "over 0": lambda x: x / 0.0,
    "where equal": lambda x: jnp.where(x > 0, jnp.zeros_like(x), -jnp.zeros_like(x)),
    "where zero": lambda x: jnp.where(x == 0, x, 0.0 * x),
    "not equal": lambda x: jnp.where(x != x, jnp.ones_like(x), x),
    "not less": lambda x: jnp.where(~(x < 0), x, -x),
    "max 0": lambda x: jnp.maximum(x, 0.0),
    "min -0": lambda x: jnp.minimum(x, -0.0),
}
BINARY = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "less": lambda x, y: jnp.where(x < y, x, y),
    "less or equal": lambda x, y: jnp.where(x <= y, x, y),
    "equal": lambda x, y: jnp.where(x == y, x, y),
    "both": lambda x, y: jnp.where((x > 0) & (y > 0), x, y),
}


FUNCTIONS = {**{name: (f, 1) for name, f in UNARY.items()}, **{name: (f, 2) for name, f in BINARY.items()}}


def elementwise():
    """A cell of one unit that applies all functions, each to inputs of its own; every result is a leaf of the carry."""

    def gates(h, z, us):
        del h, us
        return {name: f(*z[name]) for name, (f, _) in FUNCTIONS.items()}

    return Cell(
        init=lambda key, features: jnp.zeros(1),
        initial_carry=lambda params, batch: {name: jnp.zeros((*batch, 1), params.dtype) for name in FUNCTIONS},
        project=lambda params, x: x,
        transition=lambda params, carry, z: gates(carry, z, ()),
        readout=lambda params, carry, z: carry,
        gated=Gated(weights=lambda params: (), stages=(), gates=gates),
    )


def same(got, expected, rtol, atol, what):
    """Equal infinities and NaN, and other numbers within the tolerances."""
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol, err_msg=what)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
@pytest.mark.filterwarnings("ignore:overflow|divide|invalid")
def test_every_function_is_that_of_jax_on_all_special_values(x64, dtype):
    """Values and gradients; JAX's, operation by operation, so that no compiler simplifies them."""
    values, info = grid(dtype), jnp.finfo(dtype)
    pairs = np.stack(np.meshgrid(values, values), -1).reshape(-1, 2)
    x, y = (jnp.asarray(column[:, None]) for column in pairs.T)
    inputs = {name: (x, y)[:n] for name, (_, n) in FUNCTIONS.items()}
    cell, params = elementwise(), jnp.zeros(1, dtype)

    @compiled
    def run(xs):
        ys, backward = jax.vjp(lambda xs: unroll(cell, params, None, xs, method="native")[1], xs)
        return ys, backward(jax.tree.map(jnp.ones_like, ys))[0]

    ys, gradients = jax.tree.map(lambda leaf: leaf[0], run(jax.tree.map(lambda leaf: leaf[None], inputs)))
    for name, (f, _) in FUNCTIONS.items():
        expected, backward = jax.vjp(f, *inputs[name])
        # Below the least normal number is 0, as in XLA.
        same(ys[name], expected, 8 * info.eps, 2 * info.tiny, name)
        zeros = (ys[name] == 0) & (expected == 0)
        np.testing.assert_array_equal(np.signbit(ys[name])[zeros], np.signbit(expected)[zeros], f"signs of 0 of {name}")
        for got, gradient in zip(gradients[name], backward(jnp.ones_like(expected)), strict=True):
            same(got, gradient, 32 * info.eps, 32 * info.eps, f"the gradient of {name}")
