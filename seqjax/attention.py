"""Attention: a cell that attends to a memory, the states of an encoder or the positions of an image's feature map.

A memory is values [B, S, M]; each value has a key [B, S, A]. A query [B, Q] gives every position a score, and

    weights = softmax(scores)            [B, S], exactly 0 where the mask is false
    context = sum_s weights_s values_s   [B, M]

How a query is scored (`additive`, `multiplicative`) and where the context goes are independent choices: `luong` puts
it into the output, so that all steps attend at once and the cell keeps its fast path, `bahdanau` into the recurrence.

    attending = luong(cells.gru(64), 128)
    params = attending.cell.init(key, 32)
    memory = attending.remember(params, values, mask)                       # once per batch
    carry, ys = unroll(attending.cell, params, None, (xs, memory))          # ys [T, B, 64]
    _, weights = unroll(attending.alignment, params, None, (xs, memory))    # [T, B, S], for a plot
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from seqjax.arrays import Array, Carry, Key, Params, carry_dtype, dense, like
from seqjax.cells.building import check_size
from seqjax.core import Cell, Const, inner, open_dense, out_features
from seqjax.identity import recorded
from seqjax.initializers import glorot_uniform
from seqjax.wrappers.structure import inside

__all__ = ["Attending", "Bahdanau", "Memory", "Score", "additive", "attend", "bahdanau", "luong", "multiplicative"]


class Score(NamedTuple):
    """How well a query fits a key.

    Attributes:
      init: `(key, Q, M, dtype) -> params`.
      keys: `(params, values [..., S, M]) -> keys [..., S, A]`, computed once per sequence.
      scores: `(params, query [..., Q], keys [..., S, A]) -> [..., S]`.
    """

    init: Callable[[Key, int, int, DTypeLike], Params]
    keys: Callable[[Params, Array], Array]
    scores: Callable[[Params, Array, Array], Array]


class Memory(NamedTuple):
    """What a query attends to; the values are 0 where the mask is false.

    Attributes:
      values: [..., S, M].
      keys: [..., S, A].
      mask: bool [..., S].
    """

    values: Array
    keys: Array
    mask: Array


class Attending(NamedTuple):
    """A cell that attends to a memory.

    Attributes:
      cell: takes `x = (x, memory)`.
      alignment: the same cell with the same params, whose output is the attention weights [B, S] of the step.
      remember: `(params, values [B, S, M], mask bool [B, S] or None) -> memory`, a `Const` with a `Memory`. The content
        of the padding, NaN included, affects neither outputs nor gradients.
      start: `(carry of the cell inside) -> carry`, the initial carry from that of the cell inside.
    """

    cell: Cell
    alignment: Cell
    remember: Callable[..., Const]
    start: Callable[[Carry], Carry]


class Bahdanau(NamedTuple):
    """The carry of `bahdanau`.

    Attributes:
      cell: that of the cell inside.
      context: [B, M], of the last step.
      query: [B, Q], of the last step.
    """

    cell: Carry
    context: Array
    query: Array


def additive(units: int) -> Score:
    """`score_s = v . tanh(query @ w_q + value_s @ w_m)` (Bahdanau, Cho & Bengio 2015, arXiv 1409.0473).

    Args:
      units: A, of w_q [Q, A], w_m [M, A] and v [A].

    Raises:
      ValueError: units below 1.
    """
    units = check_size("additive", units)

    def init(key, query, memory, dtype):
        k_q, k_m, k_v = jax.random.split(key, 3)
        draw = glorot_uniform()
        return {
            "w_q": draw(k_q, (query, units), dtype),
            "w_m": draw(k_m, (memory, units), dtype),
            "v": draw(k_v, (units, 1), dtype),
        }

    def scores(params, query, keys):
        projected = jnp.expand_dims(dense(query, params["w_q"]), -2)  # [..., 1, A]
        return dense(jnp.tanh(like(projected, keys) + keys), params["v"])[..., 0]

    return Score(init, lambda params, values: dense(values, params["w_m"]), scores)


def multiplicative() -> Score:
    """`score_s = query . (value_s @ w_m)`, w_m [M, Q] ("general" of Luong, Pham & Manning 2015, arXiv 1508.04025)."""
    return Score(
        init=lambda key, query, memory, dtype: {"w_m": glorot_uniform()(key, (memory, query), dtype)},
        keys=lambda params, values: dense(values, params["w_m"]),
        scores=lambda params, query, keys: jnp.einsum("...a,...sa->...s", query, keys),
    )


def attend(score: Score, params: Params, query: Array, memory: Memory) -> tuple[Array, Array]:
    """`(context [..., M], weights [..., S])` of a query [..., Q]; 0 for a memory that is all padding.

    Args:
      score: how a query is scored.
      params: those of the score.
      query: with the leading axes of the memory.
      memory: what the query attends to.
    """
    scores = score.scores(params, query, memory.keys)
    lowest = jnp.full_like(scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(jnp.where(memory.mask, scores, lowest))
    weights = jnp.where(memory.mask, weights, jnp.zeros_like(weights))
    return jnp.einsum("...s,...sm->...m", weights, memory.values), weights


@recorded
def luong(cell: Cell, features: int, score: Score | None = None) -> Attending:
    """Attend with the output of the cell, after the step (Luong, Pham & Manning 2015, arXiv 1508.04025).

        h_t = cell(h_{t-1}, x_t);   y_t = tanh([context(h_t); h_t] @ w_c)

    The context is not fed into the next step, so attention is part of the readout: the cell keeps its hints, and all
    steps attend at once. w_c is [M + H, H], without a bias. Around a stack, the stack is unrolled step by step.

    Args:
      cell: any cell with H outputs.
      features: width M of the memory.
      score: by default `multiplicative()`.
    """
    features = check_size("luong", features, "features")
    score = score or multiplicative()
    base = inner(inside(cell), lambda z: z[0])

    def initial_params(key, in_features):
        return _params(key, cell, in_features, features, score, lambda p: out_features(cell, p, in_features))

    def attended(params, carry, z):
        h = base.readout(params, carry, z)
        return h, *attend(score, params["score"], h, z[1].value)

    def readout(params, carry, z):
        h, context, _ = attended(params, carry, z)
        return _output(params, context, h)

    attending = base._replace(
        init=initial_params,
        project=lambda params, x: (cell.project(params["cell"], x[0]), x[1]),
        readout=readout,
    )
    alignment = attending._replace(readout=lambda params, carry, z: attended(params, carry, z)[2])
    return Attending(attending, alignment, _remember(score, features), lambda carry: carry)


@recorded
def bahdanau(cell: Cell, features: int, score: Score | None = None) -> Attending:
    """Attend before the step, with the context as an input (Bahdanau, Cho & Bengio 2015, arXiv 1409.0473).

        c_t = context(h_{t-1});   h_t = cell(h_{t-1}, [x_t; c_t]);   y_t = tanh([c_t; h_t] @ w_c)

    The query h_{t-1} is the first leaf of the carry: the state of a gated cell, that of the first layer of a stack. The
    context enters the recurrence, so there are no hints and the cell is unrolled step by step.

    Args:
      cell: any cell with H outputs that reads features.
      features: width M of the memory.
      score: by default `additive(M)`.

    Raises:
      ValueError: in `init`, for tokens in place of features: put `wrappers.with_embedding` around it.
    """
    features = check_size("bahdanau", features, "features")
    score = score or additive(features)

    def initial_params(key, in_features):
        if in_features == 0:
            raise ValueError(
                "bahdanau appends the context to features, got a cell that reads tokens: use with_embedding"
            )
        return _params(key, cell, in_features + features, features, score, query_features)

    def query_features(params):
        return jax.tree.leaves(jax.eval_shape(lambda params: cell.initial_carry(params, ()), params))[0].shape[-1]

    def initial_carry(params, batch_shape):
        return start(cell.initial_carry(params["cell"], batch_shape))

    def start(carry):
        query = jax.tree.leaves(carry)[0]
        return Bahdanau(carry, jnp.zeros((*query.shape[:-1], features), query.dtype), query)

    def project_joined(params, x, context):
        return open_dense(cell.project(params["cell"], jnp.concatenate([x, context.astype(x.dtype)], -1)))

    def transition(params, carry, z):
        x, memory = z
        query = jax.tree.leaves(carry.cell)[0]
        context = attend(score, params["score"], query, memory.value)[0]
        return Bahdanau(cell.transition(params["cell"], carry.cell, project_joined(params, x, context)), context, query)

    def readout(params, carry, z):
        h = cell.readout(params["cell"], carry.cell, project_joined(params, z[0], carry.context))
        return _output(params, carry.context, h)

    attending = Cell(initial_params, initial_carry, lambda params, x: x, transition, readout)
    alignment = attending._replace(
        readout=lambda params, carry, z: attend(score, params["score"], carry.query, z[1].value)[1]
    )
    return Attending(attending, alignment, _remember(score, features), start)


def _params(
    key: Key, cell: Cell, in_features: int, features: int, score: Score, query_features: Callable[[Params], int]
) -> Params:
    k_cell, k_score, k_c = jax.random.split(key, 3)
    p = cell.init(k_cell, in_features)
    dtype, units = jax.tree.leaves(p)[0].dtype, out_features(cell, p, in_features)
    w_c = glorot_uniform()(k_c, (features + units, units), dtype)
    return {"cell": p, "score": score.init(k_score, query_features(p), features, dtype), "w_c": w_c}


def _output(params: Params, context: Array, h: Array) -> Array:
    return jnp.tanh(dense(jnp.concatenate([context, h.astype(context.dtype)], -1), params["w_c"]))


def _remember(score: Score, features: int) -> Callable[..., Const]:
    def remember(params: Params, values: Array, mask: Array | None = None) -> Const:
        if values.ndim < 2 or values.shape[-1] != features:
            raise ValueError(f"the memory has shape {values.shape}, expected [B, S, {features}]")
        places = values.shape[:-1]
        if mask is None:
            mask = jnp.ones(places, bool)
        if mask.shape != places or mask.dtype != bool:
            raise ValueError(f"mask must be bool {places}, [B, S] of the memory, got {mask.dtype} {mask.shape}")
        values = values.astype(carry_dtype(values.dtype))
        values = jnp.where(jnp.expand_dims(mask, -1), values, jnp.zeros_like(values))
        return Const(Memory(values, score.keys(params["score"], values), mask))

    return remember
