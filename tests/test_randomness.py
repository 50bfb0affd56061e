"""Everything random, in 16 and 32 bits: as large, as spread out and as often as it should be, out to the tails.

The keys are fixed, and every bound is four standard errors wide, plus the rounding of the dtype.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from seqjax import cells, decoding, draws, gradients, initializers, noise, presets, regularizers, wrappers
from seqjax.models import music
from seqjax.nnx import Dropout

KEY = jax.random.key(7)
DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32]
H = 400
GATES = ("input", "forget", "candidate", "output")

pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: jnp.dtype(dtype).name)


def uniform(bound, low=None):
    low = -bound if low is None else low
    return stats.uniform(low, bound - low)


def truncated(std):
    scale = std / 0.87962566103423978  # of a normal number within two standard deviations
    return stats.truncnorm(-2, 2, scale=scale)


class Quantiles(NamedTuple):
    """A distribution by its inverse function; its moments are those of many equally likely quantiles."""

    ppf: Callable

    def stats(self, moments):
        assert moments == "mv"
        values = self.ppf((np.arange(10**6) + 0.5) / 10**6)
        return values.mean(), values.var()

    def support(self):
        return self.ppf(0.0), self.ppf(1.0)


def logit(u):
    return np.log(u) - np.log1p(-u)


def matrix(init):
    return lambda dtype: init(KEY, (H, H), dtype)


def nonzero(draw):
    return lambda dtype: (lambda drawn: drawn[drawn != 0])(draw(dtype))


def biases(init, gate):
    """A bias a unit of that gate, of many layers."""

    def draw(dtype):
        drawn = jax.vmap(lambda key: init(key, GATES, H, dtype))(jax.random.split(KEY, 50))
        return jnp.split(drawn, len(GATES), axis=1)[gate]

    return draw


def carry_noise(dtype):
    _, sample = noise.carry_noise(cells.min_gru(H), 0.3)
    return sample(KEY, jnp.zeros((100, H), dtype), jnp.zeros((2, 100, 3)))


def embedding(dtype):
    return wrappers.with_embedding(cells.min_gru(3, dtype=dtype), 3000, 16).init(KEY, 0)["embedding"]


coordinate = stats.beta((H - 1) / 2, (H - 1) / 2, loc=-1, scale=2)  # of a point drawn uniformly on a sphere
CONTINUOUS = {
    "glorot_uniform": (matrix(initializers.glorot_uniform()), uniform((3 / H) ** 0.5)),
    "glorot_normal": (matrix(initializers.glorot_normal()), truncated(H**-0.5)),
    "he_uniform": (matrix(initializers.he_uniform()), uniform((6 / H) ** 0.5)),
    "he_normal": (matrix(initializers.he_normal()), truncated((2 / H) ** 0.5)),
    "lecun_uniform": (matrix(initializers.lecun_uniform()), uniform((3 / H) ** 0.5)),
    "lecun_normal": (matrix(initializers.lecun_normal()), truncated(H**-0.5)),
    "normal": (matrix(initializers.normal(0.5)), stats.norm(0, 0.5)),
    "uniform": (matrix(initializers.uniform()), uniform(H**-0.5)),
    "critical": (matrix(initializers.critical(2.0)), stats.norm(0, 2 * H**-0.5)),
    "sparse": (nonzero(matrix(initializers.sparse(200))), stats.norm(0, 1)),
    "orthogonal": (matrix(initializers.orthogonal()), coordinate),
    "unitary": (lambda dtype: initializers.unitary()(KEY, (H, H), dtype)[: H // 2], coordinate),
    "rotations": (
        lambda dtype: jnp.diagonal(initializers.rotations(0.0, 1.5)(KEY, (3000, 3000), dtype), 1)[::2],
        uniform(1.5, 0.0),
    ),
    "uniform_bias": (biases(initializers.uniform_bias(), 0), uniform(H**-0.5)),
    "from_jax": (biases(initializers.from_jax(jax.nn.initializers.normal(1.0)), 0), stats.norm(0, 1)),
    "chrono": (biases(initializers.chrono(100), 1), Quantiles(lambda q: np.log(1 + 98 * q))),
    "uniform_gate": (biases(initializers.uniform_gate(), 1), Quantiles(lambda q: logit(1 / H + q * (1 - 2 / H)))),
    "pytorch": (biases(presets.pytorch()["b"], 0), stats.triang(0.5, -2 * H**-0.5, 4 * H**-0.5)),
    "irnn": (matrix(presets.irnn()["w_x"]), stats.norm(0, 1e-3)),
    "keras": (lambda dtype: presets.keras()["w_x"](KEY, (H, 4 * H), dtype), uniform((6 / (5 * H)) ** 0.5)),
    "flax": (matrix(presets.flax()["w_x"]), truncated(H**-0.5)),
    "carry_noise": (carry_noise, stats.norm(0, 0.3)),
    "with_embedding": (embedding, stats.norm(0, 0.25)),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_numbers_have_the_moments_and_the_tails_of_their_distribution(name, dtype):
    draw, expected = CONTINUOUS[name]
    drawn = draw(dtype)
    assert drawn.dtype == dtype
    x = np.asarray(drawn, np.float64).ravel()
    count, rounding = len(x), float(jnp.finfo(dtype).eps)
    # All that float16 holds below 1e-4 is whole multiples of 2**-24.
    least = float(jnp.finfo(dtype).smallest_subnormal) if dtype == jnp.float16 else 0.0
    mean, var = expected.stats("mv")
    kurtosis = np.mean(((x - x.mean()) / x.std()) ** 4)
    assert abs(x.mean() - mean) < 4 * np.sqrt(var / count) + 0.02 * rounding * np.sqrt(var)
    assert abs(x.var() / var - 1) < 4 * np.sqrt((kurtosis - 1) / count) + rounding
    for p in (1e-3, 0.02, 0.3, 0.7, 0.98, 1 - 1e-3):
        quantile = float(expected.ppf(p))
        near = rounding * abs(quantile) + least
        error = 4 * np.sqrt(p * (1 - p) / count)
        assert (x < quantile - near).mean() - error <= p <= (x <= quantile + near).mean() + error, p
    low, high = expected.support()
    assert np.isfinite(x).all()
    assert low - rounding * abs(low) - least <= x.min()
    assert x.max() <= high + rounding * abs(high) + least


def like_float32(draw, dtype):
    """Drawn in float32 and cast last, a 16-bit draw is the cast of the one in 32 bits."""
    for wide, drawn in zip(jax.tree.leaves(draw(jnp.float32)), jax.tree.leaves(draw(dtype)), strict=True):
        assert drawn.dtype == dtype
        np.testing.assert_array_equal(drawn, wide.astype(dtype))


@pytest.mark.parametrize("init", [initializers.np_rnn(), initializers.spectral_radius(), initializers.identity()])
def test_matrices_with_a_given_spectrum_are_cast_last(init, dtype):
    like_float32(lambda dtype: init(KEY, (6, 6), dtype), dtype)


ARGUMENTS = {
    "conv_lstm": (2, (5,)),
    "delta_net": (2, 3, 2),
    "gated_linear_attention": (2, 3, 2),
    "mlstm": (2, 3, 2),
    "projected_lstm": (4, 2),
    "rg_lru": (),
    "s4d": (2,),
}
CELLS = [name for name in cells.__all__ if name[0].islower() and name != "stack"]


@pytest.mark.parametrize("name", CELLS)
def test_the_weights_of_a_cell_are_cast_last(name, dtype):
    make = getattr(cells, name)
    like_float32(lambda dtype: make(*ARGUMENTS.get(name, (4,)), dtype=dtype).init(KEY, 4), dtype)


def carried(regularizer, **options):
    """Noise for a carry of that dtype."""

    def draw(rate, dtype):
        _, sample = regularizer(cells.gru(H), rate, **options)
        noise = sample(KEY, jnp.zeros((500, H), dtype), jnp.zeros((2, 500, H), dtype))
        return jax.tree.leaves(noise)[0]

    return draw


MASKS = {
    "dropout_mask": lambda rate, dtype: draws.dropout_mask(KEY, rate, (500, H), dtype),
    "recurrent": carried(regularizers.recurrent_dropout, gates=3),
    "candidate": carried(regularizers.candidate_dropout, per_step=True),
    "input": carried(regularizers.input_dropout, per_step=True),
    "output": carried(regularizers.output_dropout),
    "depth": lambda rate, dtype: (
        regularizers.stochastic_depth(cells.min_gru(3), rate)[1](
            KEY, jnp.zeros((200_000, 3), dtype), jnp.zeros((2, 200_000, 3))
        ).value
    ),
    "weight_drop": lambda rate, dtype: regularizers.weight_drop(KEY, {"w_h": jnp.ones((500, H), dtype)}, rate)["w_h"],
    "embedding_dropout": lambda rate, dtype: regularizers.embedding_dropout(
        KEY, {"embedding": jnp.ones((200_000, 1), dtype)}, rate
    )["embedding"],
    "Dropout": lambda rate, dtype: Dropout(rate, rngs=nnx.Rngs(0))(jnp.ones((500, H), dtype)),
}


def about(found, p, count):
    assert abs(found - p) < 4 * np.sqrt(p * (1 - p) / count), (found, p)


@pytest.mark.parametrize("rate", [0.0005, 0.005, 0.3, 0.99, 0.999])
@pytest.mark.parametrize("name", MASKS)
def test_what_is_dropped_is_as_often_as_the_rate_says(name, rate, dtype):
    mask = MASKS[name](rate, dtype)
    assert mask.dtype == dtype
    mask = np.asarray(mask, np.float64)
    about((mask == 0).mean(), rate, mask.size)
    kept = np.unique(mask[mask != 0])
    np.testing.assert_allclose(kept, [float(jnp.asarray(1 / (1 - rate), dtype))], rtol=2e-6)


def test_a_traced_rate_is_not_rounded(dtype):
    """A lane of a sweep: the rate in float32, the mask in the dtype."""
    draw = jax.jit(lambda rate: draws.dropout_mask(KEY, rate, (500, H), dtype))
    about((np.asarray(draw(jnp.float32(0.002)), np.float32) == 0).mean(), 0.002, 500 * H)


def test_a_rate_whose_scale_the_dtype_cannot_hold_is_refused(dtype):
    def mask():
        return draws.dropout_mask(KEY, 1 - 1e-6, (10,), dtype)

    if dtype == jnp.float16:
        with pytest.raises(
            ValueError, match=r"float16 cannot hold 1 / \(1 - rate\), by which dropout at rate 0.999999"
        ):
            mask()
    else:
        assert np.isfinite(np.asarray(mask(), np.float32)).all()


@pytest.mark.parametrize("rate", [0.0005, 0.3, 0.999])
def test_zoneout_keeps_as_often_as_the_rate_says(rate, dtype):
    _, sample = noise.zoneout(cells.min_gru(H), rate)
    kept = sample(KEY, jnp.zeros((250, H), dtype), jnp.zeros((2, 250, H)))
    assert kept.dtype == dtype
    about(np.asarray(kept, np.float64).mean(), rate, kept.size)


def test_tokens_of_equal_logits_are_equally_likely(dtype):
    tokens = np.asarray(decoding.choose(KEY, jnp.zeros((20_000, 500), dtype)))
    assert abs(tokens.mean() - 249.5) < 4 * np.sqrt((500**2 - 1) / 12 / len(tokens))
    assert stats.chisquare(np.bincount(tokens, minlength=500)).pvalue > 1e-4


def test_keys_of_a_chord_sound_as_often_as_their_logits_say(dtype):
    head = music.Chain(jnp.full((2, H), -6.0, dtype))
    drawn = head.sample(jnp.zeros((500, H), dtype), KEY)
    about(np.asarray(drawn, np.float64).mean(), 1 / (1 + np.exp(6.0)), drawn.size)


ESTIMATORS = {
    "uoro": gradients.uoro,
    "kf_rtrl": gradients.kf_rtrl,
    "rflo": gradients.rflo,
    "artbp": lambda cell, loss, key: gradients.artbp(cell, loss, 0.01, key),
    "persistent_evolution": partial(gradients.persistent_evolution, pairs=2),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_draw_no_random_bits_of_16(name, dtype):
    cell = wrappers.with_head(cells.rnn(4, dtype=dtype), 2)
    params = jax.eval_shape(lambda: cell.init(KEY, 3))

    def update(params, xs, targets):
        estimator = ESTIMATORS[name](cell, lambda ys, targets: ((ys - targets) ** 2).sum(-1), KEY)
        state = estimator.init(params, cell.initial_carry(params, (2,)), xs)
        return estimator.update(params, state, xs, targets)[:2]

    program = str(jax.make_jaxpr(update)(params, jnp.zeros((3, 2, 3)), jnp.zeros((3, 2, 2))))
    widths = set(re.findall(r"bit_width=(\d+)", program))
    assert widths == {"32"}
