"""What is drawn and made on the device has one dtype, and one value, with 64-bit types and without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.data import jena, motion, spectrogram, spoken_digits, streams, synthetic, text, windows

pytestmark = pytest.mark.usefixtures("quick_programs")

SETTINGS = spectrogram.Settings()
BANK = streams.bank(spoken_digits.generated(count=1, samples=400))
RECORD = jena.synthetic_climate(jax.random.key(1), 400)


def _stream(key):
    @jax.jit
    def run(key):
        stream = streams.draw(key, BANK, streams.Mix(1, speeds=(0.9, 1.1)))
        return stream, streams.targets(stream, 100, 80)

    return run(key)


def _forecasting(key):
    task = jena.forecasting(RECORD, history=5)
    starts = task.train[:4]
    return jena.batch(task, starts), jena.last_value(task, starts), jena.synthetic_climate(key, 20).values


def _windows(key):
    rows = windows.minibatch(key, 3, 4, 20)
    scale = windows.Standardizer.fit(RECORD.values)
    return (
        rows,
        windows.gather(jnp.asarray(RECORD.values), rows, 3),
        scale.apply(RECORD.values),
        scale.invert([[0.0] * 14]),
    )


MAKERS = {
    "adding": lambda key: synthetic.adding(key, 2, 6),
    "copy_memory": lambda key: synthetic.copy_memory(key, 2, 3),
    "delayed_recall": lambda key: synthetic.delayed_recall(key, 2, 3, distractors=2),
    "stream": _stream,
    "windows": _windows,
    "forecasting": _forecasting,
    "chunk": lambda key: text.chunk(jnp.asarray(text.lanes(np.arange(20), 2)), 1, 3),
    "log_mel": lambda key: spectrogram.log_mel(SETTINGS, jnp.zeros((2, 400), jnp.float32)),
    "ball": lambda key: motion.ball(key, 2, 5, gravity=0.01),
    "blobs": lambda key: motion.blobs(motion.ball(key, 2, 5).positions, 4),
    "moving": lambda key: motion.moving(key, jnp.ones((2, 1, 3, 3), jnp.float32), 4, 8),
    "directions": lambda key: motion.directions(motion.ball(key, 2, 5).velocities),
}


@pytest.mark.parametrize("name", MAKERS)
def test_64_bit_types_change_nothing(name):
    made = jax.tree.map(np.asarray, MAKERS[name](jax.random.key(0)))
    with jax.enable_x64(True):
        wide = jax.tree.map(np.asarray, MAKERS[name](jax.random.key(0)))
    narrow = {leaf.dtype for leaf in jax.tree.leaves(made)}
    assert narrow <= {np.dtype(np.float32), np.dtype(np.int32)}
    assert [leaf.dtype for leaf in jax.tree.leaves(wide)] == [leaf.dtype for leaf in jax.tree.leaves(made)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), wide, made)
