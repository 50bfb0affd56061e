"""Which class does a series belong to? Recurrent networks against the nearest neighbour, on the UCR and UEA archives.

ECG200 (heart beats), ItalyPowerDemand, GunPoint, ArrowHead, OSULeaf (outlines); JapaneseVowels (12 variables, unequal
lengths) and BasicMotions (6 variables). The official parts; a fifth of the training part, of each class, is held out to
watch. It has 8 to 54 series, too few to choose by: the test is at the last params. Sources: Dau et al. 2018 (arXiv
1810.07758), Bagnall et al. 2018 (arXiv 1811.00075).

    euclidean, dtw     the class of the nearest series of the whole training part; not trained
    logistic, dense    logistic regression, and Dense(128, relu), on all values
    conv               a fully convolutional network (Wang et al. 2017, arXiv 1611.06455), smaller
    rnn, lstm, gru     one layer; bilstm: in both directions
    min_gru, lru       two layers of minimal GRU, or of highway layers of linear recurrent units: linear in their carry

    python -m experiments.series --data=JapaneseVowels --model=lstm --data_dir=DIR
    python launch.py --experiment=series --data_dir=DIR        all problems and models

DIR holds NAME_TRAIN and NAME_TEST as the archive publishes them, see `seqjax.data.ucr`. Without --data_dir the series
are generated.

Measured on JapaneseVowels: lstm has a test accuracy of 0.929 ± 0.033, dtw 0.949 (docs/results.md).
"""

import sys
from collections.abc import Callable
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
from experiments.harness.report import Section, groups, intervals, mean, panels, save, separate
from experiments.shared import confusion, layers, tasks
from seqjax.arrays import Array, Key, Params, Tree
from seqjax.data import ucr, windows
from seqjax.models import ConvClassifier, DenseClassifier, SeriesClassifier, nearest
from seqjax.train import Run, State, write_arrays

if TYPE_CHECKING:
    pass

# Accuracies that the archives publish: Euclidean distance and unbounded warping. (Of several variables: DTW_D.)
PUBLISHED = {
    "ECG200": {"euclidean": 0.880, "dtw": 0.770},
    "ItalyPowerDemand": {"euclidean": 0.955, "dtw": 0.950},
    "GunPoint": {"euclidean": 0.913, "dtw": 0.907},
    "ArrowHead": {"euclidean": 0.800, "dtw": 0.703},
    "OSULeaf": {"euclidean": 0.521, "dtw": 0.591},
    "JapaneseVowels": {"dtw": 0.949},
    "BasicMotions": {"dtw": 0.975},
}
NEAREST = ("euclidean", "dtw")
SHARES = tuple(np.linspace(0.1, 1, 10))  # of a test series that a network is shown


MODELS = (*NEAREST, "logistic", "dense", "conv", *layers.CELLS)

FLAGS = training_flags(
    steps=1500,
    steps_per_call=50,
    evaluate_every=500,
    batch_size=16,
    learning_rate=3e-3,
    clip_norm=1.0,
    schedule="cosine",
)
flags.DEFINE_enum("data", "JapaneseVowels", list(PUBLISHED), "Which problem.", flag_values=FLAGS)
flags.DEFINE_enum("model", "lstm", MODELS, "Which model.", flag_values=FLAGS)
flags.DEFINE_integer("units", 64, "Units of a recurrent layer.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_enum("read", "mean", ["mean", "last"], "Which outputs of a recurrent network count.", flag_values=FLAGS)
flags.DEFINE_boolean("normalize", False, "Each variable of each series to mean 0, deviation 1.", flag_values=FLAGS)
flags.DEFINE_float("dropout", 0.0, "Rate before the dense layers, in [0, 1).", flag_values=FLAGS)
flags.register_validator("dropout", lambda rate: 0 <= rate < 1, "a rate in [0, 1)", flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate", "dropout")
synthetic_data = without_data("series")


class Examples(NamedTuple):
    """Series on the device: values [N, T, D], lengths and labels int32 [N]."""

    values: Array
    lengths: Array
    labels: Array


@cache  # read once per process, where a sweep builds many experiments
def _parts(data_dir: str | None, name: str, normalize: bool) -> dict[str, ucr.Series]:
    """ "train", "validation", "test", and "official", the first two as one."""
    if data_dir is None:
        print("no --data_dir: the series are generated, and their numbers mean nothing", file=sys.stderr)
        parts = {part: ucr.generated(90, seed) for seed, part in enumerate(("train", "test"))}
    else:
        parts = ucr.load(data_dir, name)
    if normalize:
        parts = {part: ucr.normalize(series) for part, series in parts.items()}
    train, validation = ucr.split(parts["train"])
    return {"train": train, "validation": validation, "test": parts["test"], "official": parts["train"]}


def _real(series: ucr.Series) -> np.ndarray:
    """bool [N, T], true up to the end of each series."""
    return np.arange(series.values.shape[1]) < series.lengths[:, None]


def examples(config: SimpleNamespace, parts: dict[str, ucr.Series]) -> dict[str, Examples]:
    """The parts as a model reads them: networks get variables of mean 0 and deviation 1 over the training part."""
    scale = windows.Standardizer.fit(parts["train"].values[_real(parts["train"])])

    def read(series: ucr.Series) -> Examples:
        values = jnp.asarray(series.values)
        if config.model not in NEAREST:
            values = jnp.where(jnp.asarray(_real(series)[..., None]), scale.apply(values), jnp.zeros_like(values))
        return Examples(values, jnp.asarray(series.lengths), jnp.asarray(series.labels))

    return {name: read(series) for name, series in parts.items()}


class Network(NamedTuple):
    """The model as functions of its weights.

    Attributes:
      init: `(hparams, key) -> params`.
      logits: `(hparams, params, training part, values [B, T, D], lengths [B], key) -> [B, V]`; without noise where the
        key is None.
    """

    init: Callable[[Any, Key], Params]
    logits: Callable[[Any, Params, Examples, Array, Array, Key | None], Array]


def network(config: SimpleNamespace, series: ucr.Series) -> Network:
    """The model of the flags, for series of these shapes and classes."""
    classes = len(series.classes)
    if config.model in NEAREST:

        def of_nearest(hparams, params, known, values, lengths, key):
            del hparams, params, key
            if config.model == "dtw":
                distances = nearest.dtw(values, known.values, lengths, known.lengths)
            else:
                distances = nearest.euclidean(values, known.values)
            own = jax.nn.one_hot(known.labels, classes, dtype=bool)  # [M, V]
            return -jnp.where(own[None], distances[..., None], jnp.inf).min(1)

        return Network(lambda hparams, key: {}, of_nearest)

    def make(hparams, rngs: nnx.Rngs) -> nnx.Module:
        steps, features = series.values.shape[1:]
        if config.model in ("logistic", "dense"):
            hidden = (128,) if config.model == "dense" else ()
            return DenseClassifier(steps, features, classes, hidden=hidden, dropout=hparams["dropout"], rngs=rngs)
        if config.model == "conv":
            return ConvClassifier(features, classes, rngs=rngs)
        cell = layers.CELLS[config.model](config.units)
        return SeriesClassifier(
            cell,
            features,
            classes,
            backward=cell if config.model == "bilstm" else None,
            encoder=config.units if config.model in layers.AS_WIDE else 0,
            mean=config.read == "mean",
            dropout=hparams["dropout"],
            rngs=rngs,
        )

    init, bind = supervised.functional(make)

    def logits(hparams, params, known, values, lengths, key):
        del known
        return bind(hparams, params, key)(values, lengths)

    return Network(init, logits)


def build(config: SimpleNamespace) -> Experiment:
    """Cross-entropy of the classes; the test is at the last params."""
    parts = _parts(config.data_dir, config.data, config.normalize)
    data, model = examples(config, parts), network(config, parts["train"])
    count = len(data["train"].labels)

    def gradient(hparams, data: Tree, params, step, k_data, k_noise):
        train: Examples = data["train"]
        if not params:
            return jnp.float32(0), {}
        values, lengths, labels = (leaf[windows.minibatch(k_data, step, config.batch_size, count)] for leaf in train)

        def loss(params):
            return tasks.cross_entropy(model.logits(hparams, params, train, values, lengths, k_noise), labels).mean()

        return jax.value_and_grad(loss)(params)

    def evaluate(hparams, data: Tree, params):
        held: Examples = data["validation"]
        logits = model.logits(hparams, params, data["train"], held.values, held.lengths, None)
        right = (logits.argmax(1) == held.labels).astype(jnp.float32)
        return {"loss": tasks.cross_entropy(logits, held.labels).mean(), "accuracy": right.mean()}

    given = {name: data[name] for name in ("train", "validation")}
    batches = count // config.batch_size
    program = supervised.program(config, model.init, gradient, evaluate, given, batches=batches, held_out=data)
    return Experiment(program, partial(_finish, config, model, data, parts["test"].classes))


def _finish(
    config: SimpleNamespace,
    model: Network,
    data: dict[str, Examples],
    classes: tuple[str, ...],
    hparams: Hparams,
    state: State,
    run: Run,
) -> dict[str, Any]:
    """Test accuracy of the last params; all test logits in answers.npz, and a figure of the answers."""
    params, known, test = state.params, data["official"], data["test"]

    @jax.jit
    def answers(params, known, values, lengths):
        return model.logits(hparams, params, known, values, lengths, None)

    def of_share(share: float) -> np.ndarray:
        lengths = np.ceil(share * np.asarray(test.lengths)).astype(np.int32)
        read = np.arange(test.values.shape[1]) < lengths[:, None]
        values = np.where(read[..., None], test.values, np.float32(0))
        return np.asarray(answers(params, known, values, lengths))

    labels, logits = np.asarray(test.labels), of_share(1)
    write_arrays(run.directory / "answers.npz", logits=logits, labels=labels, classes=np.array(classes))
    shares = np.array((1.0,) if config.model in NEAREST else SHARES)
    by_share = [float((of_share(share).argmax(1) == labels).mean()) for share in shares]
    counts = confusion.count(labels, logits.argmax(1), len(classes))
    figure, axes = panels(1, 2)
    confusion.draw(axes[0, 0], counts, classes)
    axes[0, 1].plot(100 * shares, by_share, "o-", markersize=3)
    axes[0, 1].axhline(counts.sum(1).max() / counts.sum(), color="0.4", linestyle="--", linewidth=1)
    axes[0, 1].set(xlabel="% of a series that was read (dashed: the most frequent class)", ylabel="test accuracy")
    axes[0, 1].set(ylim=(0, 1.02))
    save(figure, run.figures / "answers")
    return {
        "test_accuracy": by_share[-1],
        "test_balanced_accuracy": confusion.balanced_accuracy(counts),
    }


SWEEP = f"data={','.join(PUBLISHED)};model={','.join(MODELS)};seed=0:3"


def report(runs: list[Run]) -> list[Section]:
    """The test accuracy of each model (rows) on each problem (columns), and beside what the archives publish."""
    by_data = groups(runs, ["data"])
    models = list(dict.fromkeys(run.flags["model"] for run in runs))
    names = [members[0].flags["data"] for members in by_data.values()]
    figures, axes = separate(*names, height=0.8 + 0.25 * len(models))
    columns = {}
    for panel, members in zip(axes, by_data.values(), strict=True):
        data = members[0].flags["data"]
        columns[data] = {model: [run for run in members if run.flags["model"] == model] for model in models}
        intervals(panel, columns[data], "test_accuracy", (0, 1))
        panel.set(title=data, xlabel="test accuracy")
    rows: list[list[Any]] = [["model", *columns]]
    for model in models:
        rows.append([model, *(_cell(found[model]) for found in columns.values())])
    for model in NEAREST:
        rows.append([f"{model}, published", *(PUBLISHED[data].get(model) for data in columns)])
    text = "Accuracy on the test part, at the last params."
    return [Section("Classes of series", text, figures, rows)]


def _cell(runs: list[Run]) -> Any:
    return mean([run.result()["test_accuracy"] for run in runs]) if runs else None


if __name__ == "__main__":
    command.main(sys.modules[__name__])
