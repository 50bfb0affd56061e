"""Regularizers: `Cell -> (Cell, sample)`, each of which also maps the hints of the cell that it wraps.

`sample(key, carry, xs)` draws the noise of one batch of sequences outside the loop, and the noisy cell takes
`x = (x, noise)`. Noise that is fixed over a sequence is a `Const`. The params are those of the bare cell, which is the
cell for evaluation. Rates and scales may be traced numbers, such as the lanes of a sweep. Around a stack every layer
has its own noise.

Regularizers of weights are `(key, params, rate) -> params`, and penalties are functions of the outputs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seqjax.arrays import Array, Carry, Key, Params, Tree, carry_dtype, like
from seqjax.core import Cell, Const, batch_shape, features, inner, open_const, with_features
from seqjax.draws import check_rate, dropout_mask
from seqjax.hints import Gated, around, gated_transition
from seqjax.identity import recorded
from seqjax.wrappers.masking import over_layers

__all__ = [
    "Sample",
    "activation_penalty",
    "candidate_dropout",
    "embedding_dropout",
    "input_dropout",
    "output_dropout",
    "recurrent_dropout",
    "stochastic_depth",
    "temporal_activation_penalty",
    "weight_drop",
]

Sample = Callable[[Key, Carry, Tree], Tree]
"""`(key, carry, xs) -> noise`, for all steps of one batch of sequences."""


def each_layer(cell: Cell, *parts: tuple[Cell, Sample]) -> tuple[Cell, Sample]:
    """A stack of regularized layers, each with its own noise."""

    def sample(key, carry, xs):
        keys = jax.random.split(key, len(parts))
        length = features(xs).shape[0]
        # Noise depends only on the shape of inputs, which the carry of the layer below has, but for the time axis.
        flat = [jax.tree.leaves(c)[0].reshape(*batch_shape(xs), -1) for c in carry[:-1]]
        below = [jnp.broadcast_to(h, (length, *h.shape)) for h in flat]
        return tuple(s(k, c, x) for (_, s), k, c, x in zip(parts, keys, carry, [xs, *below], strict=True))

    return over_layers(cell, tuple(c for c, _ in parts), lambda noise, i: noise[i]), sample


@recorded
def recurrent_dropout(cell: Cell, rate: Any, *, gates: int = 1, per_step: bool = False) -> tuple[Cell, Sample]:
    """Dropout of the carry's output where it enters the recurrent product (Gal & Ghahramani 2016, arXiv 1512.05287).

        v_k = stage_k(h, z) * m,   m ~ Bernoulli(1 - rate) / (1 - rate), [B, H]

    One mask per sequence, the same at every step. It needs the `gated` hint, which defines the factors of the recurrent
    matrix; the carry that the gates keep is not masked. Keras 3 draws one mask per gate: that is `gates=4` for its
    LSTM, and `gates=3` for its GRU, which is `gru` or `gru_reset_before` here.

    Args:
      cell: a gated cell or a stack of gated cells.
      rate: probability of dropping a unit, in [0, 1).
      gates: the number of gates into which the columns of the recurrent matrix [H, gates * H] are cut, each multiplied
        by h under its own mask (the paper's untied weights). 1 is one mask for all gates. In a cell with several
        products all but the first belong to a single gate: those of `gru_reset_before` are [H, 2 * H] and [H, H].
      per_step: draw a new mask at every step. The paper warns of this mistake; it is here to be studied.

    Returns:
      The noisy cell, which takes `x = (x, noise)`, and `sample(key, carry, xs) -> noise`, [B, gates * H].

    Raises:
      ValueError: for a rate outside [0, 1), a cell without the `gated` hint, or too few or too many gates.

    Example:
      >>> cell = seqjax.cells.gru(4)
      >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 2, 3))
      >>> noisy, sample = seqjax.regularizers.recurrent_dropout(cell, 0.5)
      >>> noise = sample(jax.random.key(1), cell.initial_carry(params, (2,)), xs)
      >>> sorted(set(noise.value.ravel().tolist())), noise.value.shape
      ([0.0, 2.0], (2, 4))
      >>> _, ys = seqjax.unroll(noisy, params, None, (xs, noise))  # evaluation: cell, params, xs
    """
    rate = check_rate(rate)
    if cell.layers:
        return each_layer(cell, *(recurrent_dropout(c, rate, gates=gates, per_step=per_step) for c in cell.layers))
    base = inner(cell, lambda z: z[0])
    gated = base.gated
    if gated is None or not gated.stages:
        raise ValueError("recurrent_dropout needs a cell with the `gated` hint: this one has no recurrent product")
    products = len(gated.stages)
    if gates != 1 and gates < products:
        raise ValueError(f"a cell with {products} recurrent products has {products} or more gates, got gates={gates}")

    def drop(stage, gate=0):
        def noisy(carry, z, us):
            v = stage(carry, z, us)
            mask = jnp.split(open_const(z[1]), gates, axis=-1)[gate]
            return v * like(mask.astype(v.dtype), v)

        return noisy

    if gates == 1:
        noisy = gated._replace(stages=tuple(drop(stage) for stage in gated.stages))
    else:
        noisy = _split_products(gated, gates)
        noisy = noisy._replace(stages=tuple(drop(stage, gate) for gate, stage in enumerate(noisy.stages)))

    def sample(key, carry, xs):
        return _carry_mask(key, rate, jax.tree.leaves(carry)[0], xs, per_step, gates)

    return _noisy_gates(cell, base, noisy), sample


def _split_products(gated: Gated, gates: int) -> Gated:
    """`gated` with one product per gate: the first of its products is cut into as many as are needed."""
    first = gates - len(gated.stages) + 1

    def weights(params):
        cut, *others = gated.weights(params)
        for w, count in ((cut, first), *((w, 1) for w in others)):
            if w.shape[1] != count * w.shape[0]:
                raise ValueError(f"masks for {gates} gates need recurrent weights [H, {count} * H], got {w.shape}")
        return (*jnp.split(cut, first, axis=1), *others)

    def join(carry, z, us):
        # Until the first product is complete, its own stage is running, which sees no u.
        whole = (jnp.concatenate(us[:first], axis=-1), *us[first:]) if len(us) >= first else ()
        return carry, z, whole

    joined = around(gated, join)
    return joined._replace(weights=weights, stages=(*joined.stages[:1] * first, *joined.stages[1:]))


def _carry_mask(key: Key, rate: Any, h: Array, xs: Tree, per_step: bool, gates: int = 1) -> Tree:
    """Masks for a leaf h [B, H] of the carry, one per gate: [B, gates * H] in a `Const`; or [T, B, gates * H]."""
    shape = (*h.shape[:-1], gates * h.shape[-1])
    if per_step:
        return dropout_mask(key, rate, (features(xs).shape[0], *shape), h.dtype)
    return Const(dropout_mask(key, rate, shape, h.dtype))


def _noisy_gates(cell: Cell, base: Cell, noisy: Gated) -> Cell:
    """`base`, which is `inner(cell, lambda z: z[0])`, with the hint `noisy` on z = (z, noise)."""
    return base._replace(
        project=lambda params, x: (cell.project(params, x[0]), x[1]),
        transition=gated_transition(noisy),
        gated=noisy,
    )


@recorded
def candidate_dropout(cell: Cell, rate: Any, *, per_step: bool = False) -> tuple[Cell, Sample]:
    """Recurrent dropout without memory loss (Semeniuta, Severyn & Barth 2016, arXiv 1603.05118).

        lstm:  c_t = f * c_{t-1} + i * (m * n)            gru:  h_t = z * h_{t-1} + (1 - z) * (m * n)
        m ~ Bernoulli(1 - rate) / (1 - rate), [B, H]

    Only the candidate n is masked, the new content of a step, so nothing that the carry holds is lost, even under a new
    mask at each step. All gated cells but `ltc` and `cfc` have a candidate; in `rnn` it is the whole new carry.

    Args:
      cell: a gated cell that names its candidate (`hints.Gated`), or a stack of such cells; wrapped or not.
      rate: probability of dropping a unit, in [0, 1).
      per_step: draw a new mask at every step. The paper tries both.

    Returns:
      The noisy cell, which takes `x = (x, noise)`, and `sample(key, carry, xs) -> noise`, [B, H].

    Raises:
      ValueError: for a rate outside [0, 1), or a cell whose hint names no candidate.
    """
    rate = check_rate(rate)
    if cell.layers:
        return each_layer(cell, *(candidate_dropout(layer, rate, per_step=per_step) for layer in cell.layers))
    base = inner(cell, lambda z: z[0])
    candidate = base.gated and base.gated.candidate
    if base.gated is None or candidate is None:
        raise ValueError("candidate_dropout needs a cell with a `gated` hint that names its candidate")

    def drop(carry, z, us, f):
        def masked(n):
            return f(n * like(open_const(z[1]).astype(n.dtype), n))

        return candidate(carry, z, us, masked)

    noisy = base.gated._replace(gates=lambda carry, z, us: drop(carry, z, us, lambda n: n), candidate=drop)

    def sample(key, carry, xs):
        return _carry_mask(key, rate, jax.tree.leaves(carry)[-1], xs, per_step)

    return _noisy_gates(cell, base, noisy), sample


@recorded
def input_dropout(cell: Cell, rate: Any, *, per_step: bool = False) -> tuple[Cell, Sample]:
    """Dropout of the input features, one mask per sequence (Gal & Ghahramani 2016, arXiv 1512.05287).

        x_t * m,   m ~ Bernoulli(1 - rate) / (1 - rate), [B, D]

    Around a stack the input of every layer is masked, each by its own mask (for all but the first layer, of the width
    of the carry below). Arguments, result and errors as in `recurrent_dropout`.

    Example:
      >>> noisy, sample = seqjax.regularizers.input_dropout(seqjax.cells.min_gru(4), 0.25)
      >>> mask = sample(jax.random.key(0), None, jnp.ones((5, 1000, 3))).value
      >>> mask.shape, bool(abs(mask.mean() - 1) < 0.05)
      ((1000, 3), True)
    """
    rate = check_rate(rate)
    if cell.layers:
        return each_layer(cell, *(input_dropout(layer, rate, per_step=per_step) for layer in cell.layers))
    base = inner(cell, lambda z: z)

    def project(params, x):
        x, noise = x
        value, mask = features(x), open_const(noise)
        if mask.shape[-1:] != value.shape[-1:]:
            raise ValueError(
                f"input_dropout got a mask {mask.shape} for inputs {value.shape}: in a stack it assumes outputs "
                "as wide as the carry of their layer; where they are not, wrap the layers one by one"
            )
        return cell.project(params, with_features(x, value * like(mask.astype(value.dtype), value)))

    def sample(key, carry, xs):
        x = features(xs)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"input_dropout masks floating features, got {x.dtype}")
        return (
            dropout_mask(key, rate, x.shape, x.dtype)
            if per_step
            else Const(dropout_mask(key, rate, x.shape[1:], x.dtype))
        )

    return base._replace(project=project), sample


def _noisy_readout(cell: Cell, readout: Callable[[Array, Array, Array], Array]) -> Cell:
    """`cell` with the output `readout(y, x, noise)`."""
    base = inner(cell, lambda z: z[0])

    def noisy(params, carry, z):
        y = base.readout(params, carry, z)
        return readout(y, z[1], open_const(z[2]).astype(y.dtype))

    return base._replace(
        project=lambda params, x: (cell.project(params, x[0]), features(x[0]), x[1]),
        readout=noisy,
    )


@recorded
def output_dropout(cell: Cell, rate: Any) -> tuple[Cell, Sample]:
    """Dropout of the output, one mask per sequence (Gal & Ghahramani 2016, arXiv 1512.05287); the carry is not masked.

        y_t * m,   m ~ Bernoulli(1 - rate) / (1 - rate), [B, H]

    Around a stack the output of the last layer is masked; for those between layers there is `input_dropout`. H is the
    width of the first leaf of the carry, so a head goes around the noisy cell: `with_head(noisy, O)` takes the params
    of `with_head(cell, O)`. Arguments, result and errors as in `recurrent_dropout`.

    Example:
      >>> cell = seqjax.cells.min_gru(4)
      >>> params, xs = cell.init(jax.random.key(0), 3), jnp.ones((5, 2, 3))
      >>> noisy, sample = seqjax.regularizers.output_dropout(cell, 0.5)
      >>> noise = sample(jax.random.key(1), cell.initial_carry(params, (2,)), xs)
      >>> _, ys = seqjax.unroll(noisy, params, None, (xs, noise))
      >>> bool(((ys == 0) == (noise.value == 0)[None]).all())
      True
    """
    rate = check_rate(rate)

    def readout(y, x, mask):
        del x
        if y.shape[-1:] != mask.shape[-1:]:
            raise ValueError(f"output_dropout masks outputs {mask.shape} as wide as the carry, got {y.shape}")
        return y * like(mask, y)

    def sample(key, carry, xs):
        del xs
        h = jax.tree.leaves(carry[-1] if cell.layers else carry)[0]
        return Const(dropout_mask(key, rate, h.shape, h.dtype))

    if cell.layers is None:
        return _noisy_readout(cell, readout), sample
    bare = tuple(
        inner(layer, lambda z: z)._replace(project=lambda params, x, layer=layer: layer.project(params, x[0]))
        for layer in cell.layers[:-1]
    )
    last, sample_last = output_dropout(cell.layers[-1], rate)
    wrapped = over_layers(cell, (*bare, last), lambda noise, i: noise)
    return wrapped, lambda key, carry, xs: sample_last(key, carry[-1], xs)


@recorded
def stochastic_depth(cell: Cell, rate: Any) -> tuple[Cell, Sample]:
    """Skip layers, each for a whole sequence (Huang et al. 2016, "Deep networks with stochastic depth").

        y_t = m * layer(x)_t + (1 - m) * x_t,   m ~ Bernoulli(1 - rate_l) / (1 - rate_l), [B]

    Around a stack of L layers, layer l = 1 ... L is skipped at the rate `rate_l = rate * l / L`, as in the paper, whose
    layers are residual: `stack(*[residual(gru(H))] * L)`. Inputs and outputs have the same number of features. A
    skipped layer still updates its carry. Arguments, result and errors as in `recurrent_dropout`.

    Example:
      >>> layer = seqjax.wrappers.residual(seqjax.cells.min_gru(3))
      >>> noisy, sample = seqjax.regularizers.stochastic_depth(seqjax.cells.stack(layer, layer), 0.5)
      >>> carry = noisy.initial_carry(noisy.init(jax.random.key(0), 3), (1000,))
      >>> noise = sample(jax.random.key(1), carry, jnp.ones((5, 1000, 3)))
      >>> [round((m.value == 0).mean().item(), 1) for m in noise]  # half the rate, then the rate
      [0.2, 0.5]
    """
    rate = check_rate(rate)
    if cell.layers:
        depth = len(cell.layers)
        return each_layer(cell, *(stochastic_depth(c, rate * (i / depth)) for i, c in enumerate(cell.layers, 1)))

    def readout(y, x, m):
        if y.shape != x.shape:
            raise ValueError(f"stochastic_depth needs outputs of the shape of the inputs, {x.shape}, got {y.shape}")
        return like(m, y) * y + like(1 - m, y) * x.astype(y.dtype)

    def sample(key, carry, xs):
        own = (1,) * (1 + len(cell.space))
        return Const(dropout_mask(key, rate, (*batch_shape(xs, cell.space), *own), jax.tree.leaves(carry)[0].dtype))

    return _noisy_readout(cell, readout), sample


def _drop_named(
    key: Key, params: Params, rate: Any, names: tuple[str, ...], shape: Callable[[Array], tuple[int, ...]]
) -> Params:
    """`params` with the leaves of these names multiplied by masks of the given shapes, each drawn with its own key."""
    rate = check_rate(rate)
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    named = [isinstance(path[-1], jax.tree_util.DictKey) and path[-1].key in names for path, _ in paths]
    if not any(named):
        raise ValueError(f"no leaf of the params is named {' or '.join(names)}: {treedef}")
    keys = jax.random.split(key, len(paths))
    leaves = [
        w * like(dropout_mask(k, rate, shape(w), w.dtype), w) if hit else w
        for (_, w), k, hit in zip(paths, keys, named, strict=True)
    ]
    return treedef.unflatten(leaves)


def weight_drop(key: Key, params: Params, rate: Any, names: tuple[str, ...] = ("w_h",)) -> Params:
    """Dropout of the recurrent weights (Merity, Keskar & Socher 2017, AWD-LSTM, arXiv 1708.02182).

        w_h * m,   m ~ Bernoulli(1 - rate) / (1 - rate), [H, G * H]

    The same entries are dropped at all steps of all sequences of a batch: call it once per update, inside the
    differentiated function, `unroll(cell, weight_drop(key, params, 0.5), ...)`. It works for any cell and any method.

    Args:
      key: PRNG key; each leaf gets a mask of its own.
      params: of a cell, or of a stack.
      rate: probability of dropping an entry, in [0, 1).
      names: of the leaves to drop from, in every layer.

    Returns:
      The params with entries dropped.

    Raises:
      ValueError: for a rate outside [0, 1), or if no leaf has such a name.

    Example:
      >>> params = {"w_h": jnp.ones((100, 100)), "w_x": jnp.ones((3, 100))}
      >>> dropped = seqjax.regularizers.weight_drop(jax.random.key(1), params, 0.5)
      >>> round((dropped["w_h"] == 0).mean().item(), 1), bool((dropped["w_x"] == params["w_x"]).all())
      (0.5, True)
    """
    return _drop_named(key, params, rate, names, lambda w: w.shape)


def embedding_dropout(key: Key, params: Params, rate: Any, names: tuple[str, ...] = ("embedding",)) -> Params:
    """Dropout of word types (Gal & Ghahramani 2016, arXiv 1512.05287): whole rows of an embedding table [V, D].

    A dropped word is dropped everywhere in the batch. Arguments, result and errors as in `weight_drop`.

    Example:
      >>> params = {"embedding": jnp.ones((100, 2))}
      >>> table = seqjax.regularizers.embedding_dropout(jax.random.key(0), params, 0.5)["embedding"]
      >>> bool((table[:, 0] == table[:, 1]).all()), sorted(set(table[:, 0].tolist()))
      (True, [0.0, 2.0])
    """
    return _drop_named(key, params, rate, names, lambda w: (w.shape[0], 1))


def _mean(values: Array, real: Array | None) -> Array:
    """Mean of values [T, B, O] over the steps where `real` [T, B] is true."""
    values = values.astype(carry_dtype(values.dtype))
    if real is None:
        return jnp.mean(values)
    count = jnp.maximum(jnp.sum(real), 1).astype(values.dtype) * values.shape[-1]
    return jnp.sum(jnp.where(like(jnp.expand_dims(real, -1), values), values, 0)) / count


def activation_penalty(ys: Array, mask: Array | None = None) -> Array:
    """`mean(y^2)`, a scalar to add to a loss, times alpha (Merity, McCann & Socher 2017, arXiv 1708.01009).

    Args:
      ys: outputs [T, B, O].
      mask: bool [T, B], true at the steps that count.

    Example:
      >>> seqjax.regularizers.activation_penalty(jnp.array([[[1.0, 3.0]]])).item()
      5.0
    """
    return _mean(jnp.square(ys), mask)


def temporal_activation_penalty(ys: Array, mask: Array | None = None) -> Array:
    """`mean((y_t - y_{t-1})^2)`, times beta in a loss (Merity, McCann & Socher 2017, arXiv 1708.01009).

    Arguments as in `activation_penalty`; a pair of steps counts if both do.

    Raises:
      ValueError: for fewer than two steps.

    Example:
      >>> seqjax.regularizers.temporal_activation_penalty(jnp.array([1.0, 1.0, 3.0]).reshape(3, 1, 1)).item()
      2.0
    """
    if ys.shape[0] < 2:
        raise ValueError(f"temporal_activation_penalty compares two steps, got outputs {ys.shape}")
    return _mean(jnp.square(ys[1:] - ys[:-1]), None if mask is None else mask[1:] & mask[:-1])
