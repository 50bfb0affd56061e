"""What is in the picture, and where? Sentences about one or two handwritten digits, also in unseen combinations.

Pictures of 32 x 32 pixels hold one or two digits of MNIST, halved to 14 x 14, and have one caption each: "a three",
"a three left of an eight" (`seqjax/data/scenes.py`). Every update draws new ones. One combination of digits and
relation in five is held out; the test shows digits of other writers, in the combinations of the training and in those.

    attention      the decoder starts at the mean of the feature map, and attends to a place of it for each word
                   (Xu et al. 2015, arXiv 1502.03044, "soft"; Bahdanau et al. 2015, arXiv 1409.0473)
    no_attention   the decoder starts at the whole feature map, and sees nothing else (Vinyals et al. 2015, 1411.4555)
    blind          the same, of black pictures: the score without looking
    frequent       the caption that is most frequent in training; all are equally so, and the first is taken

    python -m experiments.captions --model=attention --data_dir=DIR
    python launch.py --experiment=captions --data_dir=DIR          all models, three seeds

DIR holds the four files of MNIST. Without --data_dir the digits are generated.

Measured: 61.6 ± 2.1 % of the captions of unseen combinations are right with attention, 21.0 ± 10.3 % without
(docs/results.md).
"""

import sys
from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from experiments.harness import command, supervised
from experiments.harness.experiment import Experiment, Hparams, without_data
from experiments.harness.flags import training_flags
from experiments.harness.report import Section, groups, intervals, panels, save, separate
from experiments.shared import tasks
from seqjax import attention, cells
from seqjax.arrays import Array, Key
from seqjax.data import mnist, pairs, scenes
from seqjax.models import Captioner
from seqjax.train import Run, State, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODELS = ("attention", "no_attention", "blind", "frequent")
SIZE = 32
# Scenes of the validation, and of each part of the test.
HELD_OUT = 2000
_BATCH = 100
# Scenes of a figure.
SHOWN = 6

FLAGS = training_flags(
    steps=4000,
    steps_per_call=50,
    evaluate_every=500,
    checkpoint_every=1000,
    batch_size=64,
    learning_rate=2e-3,
    schedule="cosine",
    clip_norm=1.0,
)
flags.DEFINE_enum("model", "attention", MODELS, "Which model.", flag_values=FLAGS)
flags.DEFINE_integer("units", 128, "Units of the decoder, a GRU.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("channels", 64, "Features of a place of the picture.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer("beam", 1, "Captions that the search keeps; 1: greedy.", lower_bound=1, flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate")
synthetic_data = without_data("digits")


class Frequent(nnx.Module):
    """Outputs one caption, int [T] with its start, for every picture; its logits are all but certain."""

    def __init__(self, caption: np.ndarray):
        self.predicted = nnx.static(tuple(caption[1:].tolist()))

    def __call__(self, pictures: Array, captions: Array) -> Array:
        """As that of `Captioner`."""
        logits = 10 * jax.nn.one_hot(jnp.array(self.predicted[: captions.shape[1]]), scenes.VOCABULARY.size)
        return jnp.broadcast_to(logits, (len(pictures), *logits.shape))

    def caption(self, pictures: Array, length: int, **options: Any) -> Array:
        """As that of `Captioner`."""
        predicted = jnp.array([token or options["stop"] for token in self.predicted[:length]], jnp.int32)
        return jnp.broadcast_to(predicted, (len(pictures), length))


@cache  # read once per process, where a sweep builds many experiments
def _digits(data_dir: str | None) -> dict[str, scenes.ByLabel]:
    """The digits of each part."""
    if data_dir is None:
        print("no --data_dir: the digits are generated, and their numbers mean nothing", file=sys.stderr)
        parts = {"train": mnist.generated(1200, seed=0), "test": mnist.generated(200, seed=1)}
    else:
        parts = mnist.load(data_dir)
    train, validation = mnist.split(parts["train"], len(parts["train"].labels) // 12)
    of_part = {"train": train, "validation": validation, "test": parts["test"]}
    return {name: scenes.by_label(part) for name, part in of_part.items()}


def network(config: SimpleNamespace) -> tuple[supervised.Init, supervised.Bind]:
    """`init` and `bind` of the model of the flags, see `supervised.functional`."""

    def make(hparams, rngs):
        del hparams
        if config.model == "frequent":
            return Frequent(scenes.CAPTIONS[tuple(scenes.kinds()["seen"][0])])
        attend = attention.bahdanau if config.model == "attention" else None
        sizes = SIZE, scenes.VOCABULARY.size, config.units // 4 or 1
        return Captioner(cells.gru(config.units), *sizes, channels=config.channels, attend=attend, rngs=rngs)

    return supervised.functional(make)


def draw(config: SimpleNamespace, digits: scenes.ByLabel, part: str, key: Key, count: int) -> scenes.Scenes:
    """Scenes of the kinds of a part, "seen" or "held_out", as the model sees them."""
    drawn = scenes.draw(key, digits, jnp.asarray(scenes.kinds()[part]), count, SIZE)
    return drawn._replace(pictures=jnp.zeros_like(drawn.pictures)) if config.model == "blind" else drawn


def _losses(model: Any, drawn: scenes.Scenes) -> tuple[Array, Array, Array]:
    """Of each caption the cross-entropy summed over its tokens, how many of these are the likeliest, and how many."""
    logits, labels = model(drawn.pictures, drawn.captions[:, :-1]), drawn.captions[:, 1:]
    real = (labels != pairs.PADDING).astype(jnp.float32)
    right = (logits.argmax(-1) == labels).astype(jnp.float32)
    return (real * tasks.cross_entropy(logits, labels)).sum(1), (real * right).sum(1), real.sum(1)


def build(config: SimpleNamespace) -> Experiment:
    """Cross-entropy of the next word; the best params have the lowest loss on the validation digits."""
    init, bind = network(config)
    digits = _digits(config.data_dir)

    def gradient(hparams, data, params, step, k_data, k_noise):
        drawn = draw(config, data["train"], "seen", jax.random.fold_in(k_data, step), config.batch_size)

        def loss(params):
            losses, _, counts = _losses(bind(hparams, params, k_noise), drawn)
            return losses.sum() / counts.sum()

        return jax.value_and_grad(loss)(params)

    def evaluate(hparams, data, params):
        model = bind(hparams, params, None)
        held_out = scenes_of(config, data["validation"], "validation", "seen")
        losses, right, counts = jax.lax.map(lambda drawn: _losses(model, drawn), held_out)
        return {"loss": losses.sum() / counts.sum(), "token_accuracy": right.sum() / counts.sum()}

    program = supervised.program(config, init, gradient, evaluate, digits)
    return Experiment(program, partial(_finish, config, bind, digits["test"]))


def scenes_of(config: SimpleNamespace, digits: scenes.ByLabel, part: str, kinds: str) -> scenes.Scenes:
    """The scenes of "validation" or "test", the same in every run, in batches: each leaf [batches, B, ...]."""
    key = jax.random.fold_in(jax.random.key(20_150_210), ("validation", "test").index(part))
    drawn = draw(config, digits, kinds, key, HELD_OUT)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, min(_BATCH, HELD_OUT), *leaf.shape[1:]), drawn)


class Answers(NamedTuple):
    """Captions of scenes.

    Attributes:
      kinds: int32 [N, 3], the contents of the scenes.
      predicted: int32 [N, 7], generated captions without START, and STOP after the end.
      right: float32 [N], words that are the likeliest after the preceding ones.
      counts: float32 [N], words of the captions, with STOP.
      pictures: float32 [B, H, W], the first ones.
      weights: float32 [B, 7, H / 4, W / 4], the attention for each word of these; None without attention.
    """

    kinds: Any
    predicted: Any
    right: Any
    counts: Any
    pictures: Any
    weights: Any


def answers(config: SimpleNamespace, model: Any, found: scenes.Scenes) -> Answers:
    """Captions of scenes in batches, see `scenes_of`."""

    def of_batch(drawn):
        predicted = model.caption(
            drawn.pictures, drawn.captions.shape[1] - 1, start=pairs.START, stop=pairs.STOP, width=config.beam
        )
        return drawn.kinds, predicted, *_losses(model, drawn)[1:]

    first, weights = found.pictures[0], None
    batches = jax.lax.map(of_batch, found)
    if config.model == "attention":
        read = jnp.pad(batches[1][0, :, :-1], ((0, 0), (1, 0)), constant_values=pairs.START)
        weights = model.weights(first, read)
    kinds, predicted, right, counts = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batches)
    return Answers(kinds, predicted, right, counts, first, weights)


def _meanings() -> dict[tuple[int, ...], list[int]]:
    """The kind of scene that a caption tells of, by its tokens as a search gives them: STOP after the end."""
    every = np.concatenate(list(scenes.kinds().values()))
    captions = scenes.CAPTIONS[tuple(every.T)][:, 1:]
    captions = np.where(captions == pairs.PADDING, pairs.STOP, captions)
    return {tuple(caption): kind for caption, kind in zip(captions.tolist(), every.tolist(), strict=True)}


def scores(found: Answers) -> dict[str, float]:
    """Shares of what is right: words (teacher forcing), whole captions, both digits, the relation.

    And "from_training", the share of captions that are captions of the training, right or not.
    """
    meanings, nothing = _meanings(), [-1, -1, -1]
    seen = set(map(tuple, scenes.kinds()["seen"].tolist()))
    predicted = np.array([meanings.get(tuple(row), nothing) for row in found.predicted.tolist()])
    same = predicted == found.kinds
    return {
        "token_accuracy": float(found.right.sum() / found.counts.sum()),
        "exact": float(same.all(1).mean()),
        "digits": float((same[:, 0] & same[:, 2]).mean()),
        "relation": float(same[:, 1].mean()),
        "from_training": float(np.mean([row in seen for row in map(tuple, predicted.tolist())])),
    }


def _finish(
    config: SimpleNamespace, bind: supervised.Bind, digits: scenes.ByLabel, hparams: Hparams, state: State, run: Run
) -> dict[str, Any]:
    """Scores of both parts of the test; the caption of each scene, and figures of the first ones."""
    result = {}
    answer = jax.jit(lambda params, found: answers(config, bind(hparams, params, None), found))
    for part in ("seen", "held_out"):
        drawn = jax.jit(partial(scenes_of, config, part="test", kinds=part))(digits)
        found = jax.tree.map(np.asarray, answer(state.best.params, drawn))
        result |= {f"test_{name}_{part}": score for name, score in scores(found).items()}
        lines = [
            f"{scenes.sentence(*kind):30} {' '.join(scenes.VOCABULARY.decode(predicted))}"
            for kind, predicted in zip(found.kinds.tolist(), found.predicted, strict=True)
        ]
        write_atomic(run.directory / f"{part}.txt", "\n".join([f"{'is':30} predicted", *lines]) + "\n")
        save(_captioned(found) if found.weights is None else _looks(found), run.figures / part)
    return result


def _captioned(found: Answers) -> "Figure":
    """Pictures under their generated captions."""
    figure, axes = panels(2, SHOWN // 2, width=2.4, height=2.4)
    for axis, picture, predicted in zip(axes.flat, found.pictures, found.predicted, strict=False):
        axis.imshow(picture, cmap="gray")
        axis.set_title(" ".join(scenes.VOCABULARY.decode(predicted)), fontsize=8)
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
    return figure


def _looks(found: Answers) -> "Figure":
    """Pictures, and where the decoder attends for each word that it generates (red)."""
    words = found.predicted.shape[1]
    figure, axes = panels(SHOWN, words + 1, width=1.15, height=1.3)
    for row, picture, predicted, weights in zip(axes, found.pictures, found.predicted, found.weights, strict=False):
        texts = [*scenes.VOCABULARY.decode(predicted), "(end)"][:words]
        for axis, text, looks in zip(row, ["", *texts], [None, *weights], strict=False):
            axis.imshow(picture, cmap="gray", extent=(0, 1, 0, 1))
            axis.set_title(text, fontsize=8)
            if looks is not None:
                opacity = np.clip(looks / looks.max(), 0, 1) * 0.8
                axis.imshow(np.ones_like(looks), cmap="Reds", vmin=0, vmax=1.4, alpha=opacity, extent=(0, 1, 0, 1))
        for axis in row:
            axis.grid(visible=False)
            axis.set(xticks=[], yticks=[])
        for axis in row[len(texts) + 1 :]:
            axis.set_visible(False)
    return figure


SWEEP = f"model={','.join(MODELS)};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """Whole captions that are right, of what was seen in training and of new combinations."""
    figures, axes = separate("seen", "held_out", height=2.6)
    by_label = groups(runs)
    for axis, part, about in zip(axes, ("seen", "held_out"), ("seen in training", "never seen"), strict=True):
        intervals(axis, by_label, f"test_exact_{part}", (0, 1))
        axis.set(xlabel=f"captions right, combinations {about}", xlim=(0, 1))
    text = "Test digits, at the params of the lowest validation loss. A caption is right if all of its words are."
    return [Section("Captions", text, figures)]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
