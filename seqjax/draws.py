"""Random numbers of any dtype: drawn in at least float32, and cast last.

There are few distinct uniform numbers of 16 bits: distributions made from them have no tails, and the logarithm of one
that is 0 is infinite.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from seqjax.arrays import carry_dtype

__all__ = ["cast_last", "check_entries", "check_rate", "dropout_mask"]

_P = ParamSpec("_P")


def check_entries(shape: Sequence[int]) -> None:
    """Check that a weight has entries.

    Raises:
      ValueError: for an axis of size 0.
    """
    if 0 in shape:
        raise ValueError(
            f"a weight of shape {tuple(shape)} has no entries: a cell has at least one unit and reads at least one "
            "feature (init(key, 0) is for a cell that reads tokens: wrap this one in with_embedding or with_one_hot)"
        )


def cast_last(init: Callable[_P, Array]) -> Callable[_P, Array]:
    """`init`, an initializer of weights or biases, drawn in at least float32 and cast last."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def draw(*args: _P.args, **options: _P.kwargs) -> Array:
        given = signature.bind(*args, **options)
        given.apply_defaults()
        check_entries(given.arguments.get("shape", ()))  # a bias initializer has none
        dtype = given.arguments["dtype"]
        if dtype is None:  # JAX's default, which is wide enough
            return init(*given.args, **given.kwargs)
        given.arguments["dtype"] = carry_dtype(dtype)
        return init(*given.args, **given.kwargs).astype(dtype)

    return draw


def check_rate(rate: Any) -> Any:
    """Check a dropout rate, unless it is traced (a lane of a sweep).

    Raises:
      ValueError: for a rate outside of [0, 1).
    """
    # As a Python number: inside a jitted function the comparison of an array would be traced.
    if not isinstance(rate, Tracer) and not 0.0 <= float(rate) < 1.0:
        raise ValueError(f"a dropout rate lies in [0, 1), got {rate}")
    return rate


def dropout_mask(key: Array, rate: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Inverted dropout: 0 with probability `rate`, otherwise 1 / (1 - rate).

    Drawn in at least float32, and cast last. Raises ValueError where 1 / (1 - rate) is beyond the dtype.
    """
    wide = carry_dtype(dtype)
    if isinstance(rate, Tracer):
        keep = 1.0 - jnp.asarray(rate, wide)
    else:
        kept = 1.0 - float(rate)  # in double precision, since rates near 1 would lose digits
        if kept * float(jnp.finfo(dtype).max) < 1:
            raise ValueError(f"{jnp.dtype(dtype)} cannot hold 1 / (1 - rate), by which dropout at rate {rate} scales")
        keep = jnp.asarray(kept, wide)
    return jnp.where(jax.random.bernoulli(key, keep, shape), 1.0 / keep, 0.0).astype(dtype)
