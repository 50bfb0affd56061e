"""A recurrent language model as functions of its weights: it reads a text, learns from it on the way, and generates.

The experiment `language` trains one, `demos.generate` generates text with it.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.harness import supervised
from experiments.harness.experiment import Hparams
from experiments.shared import corpora, tasks
from experiments.shared.corpora import Windows
from seqjax import cells, decoding
from seqjax.arrays import Array, Carry, Key, Params, carry_dtype
from seqjax.data import files, text
from seqjax.data.damaged import named
from seqjax.models import LanguageModel
from seqjax.train import Run, write_atomic

CELLS = (
    *("rnn", "lstm", "peephole_lstm", "layer_norm_lstm", "multiplicative_lstm", "slstm", "gru", "gru_reset_before"),
    *("ugrnn", "mgu", "ind_rnn", "min_gru", "min_lstm", "qrnn", "sru"),
)
# Of AWD-LSTM on Penn Treebank, in the authors' program.
RATES = {
    "embedding_dropout": (0.1, "of words, wherever they stand"),
    "input_dropout": (0.4, "of what the first layer reads"),
    "hidden_dropout": (0.25, "of what further layers read"),
    "output_dropout": (0.4, "of what the softmax reads"),
    "weight_drop": (0.5, "of the entries of recurrent matrices"),
}
# Training windows whose gradients tell how large those of a weight are.
_STATISTICS = 500


class Network(NamedTuple):
    """A language model as functions of its weights.

    Attributes:
      init: `(hparams, key) -> params`.
      of: `(hparams, params, key) -> LanguageModel`; without noise where the key is None.
    """

    init: Callable[[Any, Key], Params]
    of: Callable[[Any, Params, Key | None], LanguageModel]

    def start(self, hparams: Any, params: Params, streams: int) -> Carry:
        """The carry before the first token of this many streams."""
        return self.of(hparams, params, None).initial_carry(streams)


def network(config: SimpleNamespace, size: int) -> Network:
    """The network of the flags, for a vocabulary of this size."""

    def make(hparams, rngs: nnx.Rngs) -> LanguageModel:
        rates = {name: or_default(hparams[name], value) if config.awd else 0.0 for name, (value, _) in RATES.items()}
        cell = getattr(cells, config.model)(config.units)
        features = config.embedding_size or config.units
        return LanguageModel([cell] * config.layers, size, features, tied=config.tied, **rates, rngs=rngs)

    init, of = supervised.functional(make)

    def uniform(hparams, key):
        leaves, tree = jax.tree.flatten(jax.eval_shape(lambda key: init(hparams, key), key))
        keys, r = jax.random.split(key, len(leaves)), config.init_range
        draws = (jax.random.uniform(k, w.shape, w.dtype, -r, r) for k, w in zip(keys, leaves, strict=True))
        return tree.unflatten(draws)

    return Network(uniform if config.init_range else init, of)


def or_default(given: Any, default: float) -> Array:
    """A number of the flags; where it is -1, the default."""
    return jnp.where(jnp.asarray(given) < 0, jnp.float32(default), given)


def read(model: Network, hparams: Any, params: Params, windows: Windows) -> Array:
    """Nats of every token of a text [C, T, L], each after all before it; the weights stay as they are."""

    def window(carry, window):
        carry, _, logits = model.of(hparams, params, None)(window.xs, carry)
        return carry, tasks.cross_entropy(logits, window.targets)

    return jax.lax.scan(window, model.start(hparams, params, windows.xs.shape[2]), windows)[1]


def read_and_learn(
    model: Network, hparams: Any, params: Params, train: Array, windows: Windows, *, rate: Any, decay: Any
) -> Array:
    """Nats of every token of a text, with a step of learning after each window: dynamic evaluation.

        w  <-  w - rate * g / (R + mean(R)) + min(decay * R / mean(R), 1) * (w_trained - w)

    g is the gradient of the window that was just read, and R the root mean square of such gradients of each weight in
    the first 500 windows of the training text (Krause, Kahembwe, Murray & Renals 2018, arXiv 1709.07432: RMS with a
    global prior). The paper's small constant beside R is here the mean of R over all weights, so that it fits gradients
    of any size.

    Args:
      model: the network.
      hparams: the traced flags.
      params: the trained weights.
      train: the training text, int32 [N, B].
      windows: the text to read.
      rate: learning rate.
      decay: of what was learned.

    Returns:
      float32 [C, T, L].
    """
    # A step on the way is too small for weights of 16 bits: they learn in float32, and are read in their own dtype.
    own, params = params, jax.tree.map(lambda w: w.astype(carry_dtype(w.dtype)), params)

    def gradient(params, carry, window):
        def loss(params):
            seen = jax.tree.map(lambda w, like: w.astype(like.dtype), params, own)
            after, _, logits = model.of(hparams, seen, None)(window.xs, carry)
            nats, real = tasks.cross_entropy(logits, window.targets), window.real.astype(jnp.float32)
            return jnp.sum(nats * real) / jnp.maximum(jnp.sum(real), 1), (after, nats)

        (_, (carry, nats)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return carry, nats, grads

    steps = windows.xs.shape[1]
    count = min(_STATISTICS, text.chunks(train, steps))

    def square(state, index):
        carry, squares = state
        xs, targets = text.chunk(train, index, steps)
        carry, _, grads = gradient(params, carry, Windows(xs, targets, jnp.ones(xs.shape, bool)))
        return (carry, jax.tree.map(lambda s, g: s + g * g, squares, grads)), None

    start = model.start(hparams, params, train.shape[1]), jax.tree.map(jnp.zeros_like, params)
    (_, squares), _ = jax.lax.scan(square, start, jnp.arange(count, dtype=jnp.int32))
    size = jax.tree.map(lambda s: jnp.sqrt(s / count), squares)
    sizes = jax.tree.leaves(size)
    mean = sum(jnp.sum(s) for s in sizes) / sum(s.size for s in sizes)

    def window(state, window):
        now, carry = state
        carry, nats, grads = gradient(now, carry, window)

        def step(w, g, r, trained):
            return w - rate * g / (r + mean) + jnp.minimum(decay * r / mean, 1.0) * (trained - w)

        return (jax.tree.map(step, now, grads, size, params), carry), nats

    return jax.lax.scan(window, (params, model.start(hparams, params, windows.xs.shape[2])), windows)[1]


def stepper(model: Network, hparams: Any, params: Params) -> decoding.Step:
    """One step of the network, as `decoding` takes it. `text.UNKNOWN_TOKEN` is to be excluded there."""
    module = model.of(hparams, params, None)

    def step(carry, tokens):
        carry, _, logits = module(jnp.expand_dims(tokens, 0), carry)
        return carry, logits[0]

    return step


def keep(
    config: SimpleNamespace,
    model: Network,
    hparams: Hparams,
    vocabulary: corpora.Vocabulary,
    params: Params,
    run: Run,
) -> None:
    """Writes vocabulary.json, and to sample.txt a text that begins after a line break."""
    write_atomic(run.directory / "vocabulary.json", vocabulary.to_json())

    def draw(params, first, key):
        step, carry = stepper(model, hparams, params), model.start(hparams, params, 1)
        return decoding.sample(step, carry, first, config.sample, key, exclude=[text.UNKNOWN_TOKEN])[1]

    tokens = jax.jit(draw)(params, vocabulary.encode("\n")[:1], jax.random.key(hparams["seed"]))
    write_atomic(run.directory / "sample.txt", vocabulary.decode(tokens[:, 0]) + "\n")


def load(run: Run) -> tuple[SimpleNamespace, corpora.Vocabulary, Network, Params]:
    """The flags, the vocabulary, the network and the weights of a finished run.

    Raises:
      FileNotFoundError: the run has trained no network, or not to its end.
      ValueError: its vocabulary or its params are damaged, or are those of another network.
    """
    file = run.directory / "vocabulary.json"
    if run.config["flags"].get("model") not in CELLS or not file.exists():
        raise FileNotFoundError(f"{run.directory} holds no network: it is not a finished run of experiments.language")
    config = SimpleNamespace(**run.flags)
    with named(file, "holds no vocabulary"):
        vocabulary = corpora.UNITS[config.unit].from_json(files.read_text(file))
    model = network(config, vocabulary.size)
    like = jax.eval_shape(lambda key: model.init(vars(config), key), jax.random.key(0))
    return config, vocabulary, model, run.load_params(like)
