"""The one list of all cells, bare and wrapped, that the laws are held against.

A new cell or wrapper gets a line in `MODELS` (and `DRESSES`); every law then runs over it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from seqjax import cells, from_step, noise, normalization, regularizers, wrappers
from seqjax.arrays import carry_dtype
from seqjax.core import Cell, Const, batch_shape

D, H, TOKENS = 3, 4, 5
RATE = 0.4


def normal(rng, shape, dtype):
    return jnp.asarray(rng.normal(size=shape), dtype)


def tokens(rng, shape, dtype):
    del dtype
    return jnp.asarray(rng.integers(0, TOKENS, shape[:-1]), jnp.int32)


def bare(key, carry, xs):
    del key, carry
    return xs


class Model(NamedTuple):
    """A cell and how to draw inputs for it: features by `draw`, then what its wrappers want by `dress`."""

    cell: Cell
    in_features: int = D
    draw: Callable[..., jax.Array] = normal
    dress: Callable[[jax.Array, Any, Any], Any] = bare


class Drawn(NamedTuple):
    """A model with random params, carry and inputs: nothing is 0, no bias and no peephole."""

    cell: Cell
    params: Any
    carry: Any
    xs: Any


def draw(model: Model, steps: int = 7, batch: tuple[int, ...] = (2,), seed: int = 0, dtype: Any = jnp.float64) -> Drawn:
    """Random params, carry and inputs of a model, in float64 unless told."""
    rng = np.random.default_rng(seed)

    def randomize(tree, dtype):
        return jax.tree.map(lambda leaf: jnp.asarray(0.6 * rng.normal(size=leaf.shape), dtype), tree)

    params = randomize(jax.eval_shape(lambda: model.cell.init(jax.random.key(0), model.in_features)), dtype)
    carry = randomize(jax.eval_shape(lambda: model.cell.initial_carry(params, batch)), carry_dtype(dtype))
    xs = model.draw(rng, (steps, *batch, *model.cell.space, model.in_features), dtype)
    return Drawn(model.cell, params, carry, model.dress(jax.random.key(seed), carry, xs))


def dress(model: Model, cell: Cell, extra: Callable[[jax.Array, Any, Any], Any]) -> Model:
    """`model` with another cell, which takes `(x, extra)`."""

    def inputs(key, carry, xs):
        inner, outer = jax.random.split(key)
        xs = model.dress(inner, carry, xs)
        return xs, extra(outer, carry, xs)

    return model._replace(cell=cell, dress=inputs)


def flags(model: Model, rate: float):
    """bool [T, B], true at `rate`."""

    def extra(key, carry, xs):
        steps = jax.tree.leaves(xs)[0].shape[0]
        return jax.random.bernoulli(key, rate, (steps, *batch_shape(xs, model.cell.space)))

    return extra


def times(key, carry, xs):
    """The time that passed before each step, [T, B]: some of it short, some of it long."""
    return jax.random.uniform(key, xs.shape[:-1], xs.dtype, 0.1, 3.0)


def masked(model: Model) -> Model:
    return dress(model, wrappers.masked(model.cell), flags(model, 0.6))


def reset(model: Model) -> Model:
    return dress(model, wrappers.reset(model.cell), flags(model, 0.3))


def residual(model: Model) -> Model:
    return model._replace(cell=wrappers.residual(model.cell))


def recurrent_dropout(model: Model, per_step: bool = False) -> Model:
    return dress(model, *regularizers.recurrent_dropout(model.cell, RATE, per_step=per_step))


def input_dropout(model: Model, per_step: bool = False) -> Model:
    return dress(model, *regularizers.input_dropout(model.cell, RATE, per_step=per_step))


def candidate_dropout(model: Model) -> Model:
    return dress(model, *regularizers.candidate_dropout(model.cell, RATE))


def per_step_recurrent_dropout(model: Model) -> Model:
    return recurrent_dropout(model, per_step=True)


def per_step_input_dropout(model: Model) -> Model:
    return input_dropout(model, per_step=True)


def output_dropout(model: Model) -> Model:
    return dress(model, *regularizers.output_dropout(model.cell, RATE))


def stochastic_depth(model: Model) -> Model:
    return dress(model, *regularizers.stochastic_depth(model.cell, RATE))


def zoneout(model: Model) -> Model:
    return dress(model, *noise.zoneout(model.cell, RATE))


def zoneout_mean(model: Model) -> Model:
    return model._replace(cell=noise.zoneout_mean(model.cell, RATE))


def carry_noise(model: Model) -> Model:
    return dress(model, *noise.carry_noise(model.cell, RATE))


def highway(model: Model) -> Model:
    return model._replace(cell=wrappers.highway(model.cell))


def learned_carry(model: Model) -> Model:
    return model._replace(cell=wrappers.learned_carry(model.cell))


DRESSES = [
    masked,
    reset,
    residual,
    recurrent_dropout,
    per_step_recurrent_dropout,
    input_dropout,
    per_step_input_dropout,
    candidate_dropout,
    output_dropout,
    stochastic_depth,
    zoneout,
    zoneout_mean,
    carry_noise,
    highway,
    learned_carry,
]


def moments(key, width: int, batch: tuple[int, ...] = ()) -> normalization.Moments:
    """Some mean and variance of a product, at each of so many steps."""
    mean, log = jax.random.normal(key, (2, *batch, width), jnp.float64)
    return normalization.Moments(0.3 * mean, jnp.exp(log))


def batch_normed(normalized: Cell, x: int, h: tuple[int, ...], c: int | None = None) -> Model:
    """A batch-normalized cell and statistics for it, of products so wide."""

    def statistics(key, carry, xs):
        keys = jax.random.split(key, 2 + len(h))
        each = normalization.Statistics(
            moments(keys[0], x, (3,)),
            tuple(moments(k, width, (3,)) for k, width in zip(keys[2:], h, strict=True)),
            None if c is None else moments(keys[1], c, (3,)),
        )
        return normalization.spread(each, xs)

    return dress(Model(cells.lstm(H)), normalized, statistics)


def sequence_batch_normed() -> Model:
    normalized, _ = normalization.sequence_batch_norm(cells.stack(cells.gru(H), cells.ind_rnn(H)))

    def statistics(key, carry, xs):
        return tuple(Const(moments(k, w)) for k, w in zip(jax.random.split(key), (3 * H, H), strict=True))

    return dress(Model(cells.gru(H)), normalized, statistics)


def leaky() -> Cell:
    """A cell without hints whose output needs the carry from before the step."""

    def init(key, in_features):
        return {"w": jax.random.normal(key, (in_features, H)), "a": jnp.zeros((H,))}

    def initial_carry(params, batch):
        return {"h": jnp.zeros((*batch, H), params["w"].dtype)}

    def step(params, carry, x):
        h = jnp.tanh(jnp.broadcast_to(params["a"], carry["h"].shape) * carry["h"] + x @ params["w"])
        return {"h": h}, h - carry["h"]

    return from_step(init, initial_carry, step)


def deep() -> Cell:
    return cells.stack(cells.min_gru(H + 1), cells.gru_reset_before(H))


def affine_stack() -> Cell:
    return cells.stack(cells.min_gru(H), cells.min_gru(H))


BARE = {
    "rnn": Model(cells.rnn(H)),
    "rnn_relu": Model(cells.rnn(H, jax.nn.relu)),
    "lstm": Model(cells.lstm(H)),
    "peephole_lstm": Model(cells.peephole_lstm(H)),
    "gru": Model(cells.gru(H)),
    "gru_reset_before": Model(cells.gru_reset_before(H)),
    "min_gru": Model(cells.min_gru(H)),
    "min_lstm": Model(cells.min_lstm(H)),
    "qrnn": Model(cells.qrnn(H)),
    "sru": Model(cells.sru(H)),
    "lru": Model(cells.lru(H)),
    "rg_lru": Model(cells.rg_lru()),
    "s4d": Model(cells.s4d(2)),
    "s5": Model(cells.s5(H)),
    "gated_linear_attention": Model(cells.gated_linear_attention(2, 3, 2)),
    "delta_net": Model(cells.delta_net(2, 3, 2)),
    "mlstm": Model(cells.mlstm(2, 3, 2)),
    "slstm": Model(cells.slstm(H)),
    "coupled_lstm": Model(cells.coupled_lstm(H)),
    "projected_lstm": Model(cells.projected_lstm(H, 2)),
    "layer_norm_lstm": Model(cells.layer_norm_lstm(H)),
    "multiplicative_lstm": Model(cells.multiplicative_lstm(H)),
    "conv_lstm": Model(cells.conv_lstm(2, (5,))),
    "fast_weights": Model(cells.fast_weights(3, steps=2)),
    "ind_rnn": Model(cells.ind_rnn(H)),
    "peephole_sru": Model(cells.peephole_sru(H)),
    "exp_rnn": Model(cells.exp_rnn(H)),
    "ugrnn": Model(cells.ugrnn(H)),
    "mgu": Model(cells.mgu(H)),
    "janet": Model(cells.janet(H)),
    "antisymmetric_rnn": Model(cells.antisymmetric_rnn(H)),
    "ct_rnn": Model(cells.ct_rnn(H)),
}

BARE |= {name: dress(Model(cell), cell, times) for name, cell in {"ltc": cells.ltc(H), "cfc": cells.cfc(H)}.items()}

MODELS = {
    **BARE,
    "from_step": Model(leaky()),
    "qrnn_window": Model(cells.qrnn(H, window=2)),
    "stack": Model(deep()),
    "conv_lstm_2d": Model(cells.conv_lstm(2, (3, 4), (3, 2)), 2),
    "masked_conv_stack": masked(Model(cells.stack(cells.conv_lstm(2, (4,)), cells.conv_lstm(3, (4,), 2)), 2)),
    "stack_of_one": Model(cells.stack(cells.gru(H))),
    "nested_stack": Model(cells.stack(cells.stack(cells.rnn(H), cells.min_gru(H)), cells.peephole_lstm(H))),
    "stack_of_from_step": Model(cells.stack(leaky(), cells.gru(H))),
    "head": Model(wrappers.with_head(cells.lstm(H), 2, jnp.tanh)),
    "head_stack": Model(wrappers.with_head(deep(), 2)),
    "embedding": Model(wrappers.with_embedding(cells.gru(H), TOKENS, D), 0, tokens),
    "one_hot": Model(wrappers.with_one_hot(cells.lstm(H), TOKENS), 0, tokens),
    "language_model": Model(
        wrappers.with_head(wrappers.with_embedding(deep(), TOKENS, D), TOKENS),
        0,
        tokens,
    ),
    "residual": residual(Model(cells.gru(H), H)),
    "residual_stack": residual(Model(cells.stack(cells.rnn(H), cells.min_gru(H)), H)),
    "stack_of_residuals": Model(cells.stack(*[wrappers.residual(cells.lstm(H))] * 2), H),
    "masked": masked(Model(cells.lstm(H))),
    "masked_from_step": masked(Model(leaky())),
    "reset": reset(Model(cells.peephole_lstm(H))),
    "reset_stack": reset(Model(affine_stack())),
    "recurrent_dropout": recurrent_dropout(Model(cells.gru_reset_before(H))),
    "input_dropout": input_dropout(Model(cells.min_gru(H))),
    "per_step_dropout": recurrent_dropout(input_dropout(Model(cells.gru(H)), per_step=True), per_step=True),
    "dropout_stack": recurrent_dropout(input_dropout(Model(cells.stack(cells.gru(H), cells.lstm(H + 1))))),
    "masked_dropout_stack": masked(recurrent_dropout(Model(cells.stack(cells.gru(H), cells.lstm(H + 1))))),
    "masked_reset_lru": masked(reset(Model(cells.lru(H)))),
    "everything": masked(reset(recurrent_dropout(residual(input_dropout(Model(cells.lstm(H), H)))))),
    "layer_norm": masked(candidate_dropout(Model(normalization.layer_norm(cells.gru_reset_before(H))))),
    "layer_norm_stack": Model(normalization.layer_norm(cells.stack(cells.lstm(H), cells.multiplicative_lstm(H)))),
    "batch_norm": masked(batch_normed(normalization.batch_norm(cells.mgu(H))[0], 2 * H, (H, H))),
    "batch_norm_lstm": batch_normed(normalization.batch_norm_lstm(H)[0], 4 * H, (4 * H,), H),
    "sequence_batch_norm": sequence_batch_normed(),
    "gate_dropout": dress(
        Model(cells.lstm(H)), *regularizers.recurrent_dropout(cells.lstm(H), RATE, gates=4, per_step=True)
    ),
    "candidate_dropout": candidate_dropout(masked(reset(zoneout(Model(cells.stack(cells.gru(H), cells.mgu(H))))))),
    "zoneout": masked(zoneout(Model(cells.stack(cells.min_gru(H), cells.gru(H))))),
    "zoneout_mean": zoneout_mean(Model(cells.min_gru(H))),
    "carry_noise": carry_noise(Model(affine_stack())),
    "depth": output_dropout(stochastic_depth(Model(cells.stack(*[wrappers.residual(cells.min_gru(H))] * 2), H))),
    "highway": highway(Model(cells.min_gru(H), H)),
    "learned_carry": reset(learned_carry(Model(affine_stack()))),
}
