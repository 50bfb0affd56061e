"""Can a truncated gradient point the wrong way? Influence balancing (Tallec & Ollivier 2017, arXiv 1702.05043).

One param theta, started at 0.5, drives a linear chain of 23 units, of which 10 get theta and 13 its negative:

    s_t = A s_{t-1} + (theta, ..., theta, -theta, ..., -theta),   A = 0.5 on the diagonal and above it

The loss (s_t[0] - 1)^2 / 2 sees the first unit alone. The influence of theta on it is positive over a few steps, while
the units that get its negative are still far away, and negative in the long run, where s[0] = -6 theta: the minimum is
at theta = -1/6. Plain gradient descent, with an update per step, or per chunk of truncated back-propagation, by the
sum of its losses.

    python -m experiments.influence --method=bptt_10
    python launch.py --experiment=influence        truncations of 1, 10 and 100 steps, RTRL and UORO

Measured after 3,000 steps: theta is -0.1667 by RTRL, 0.70 by truncation to 100 steps, 831 by that to 10
(docs/results.md).
"""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.harness import command
from experiments.harness.experiment import Experiment
from experiments.harness.flags import training_flags
from experiments.harness.optimizer import make_optimizer
from experiments.harness.report import Section, curve, groups, separate, summary
from experiments.shared import estimators
from seqjax.arrays import matmul
from seqjax.core import Cell, from_step
from seqjax.train import Program, Run, State, initial_state

FLAGS = training_flags(steps=30, steps_per_call=1, evaluate_every=1, batch_size=1, learning_rate=1e-4, optimizer="sgd")
POSITIVE, NEGATIVE = 10, 13
START = 0.5
# Time steps of a training step, which all chunks divide.
LENGTH = 100
# The estimator, and the time steps from one update to the next.
METHODS = {
    "bptt_1": ("bptt", 1),
    "bptt_10": ("bptt", 10),
    "bptt_100": ("bptt", 100),
    "rtrl": ("rtrl", 1),
    "uoro": ("uoro", 1),
}
flags.DEFINE_enum("method", "rtrl", list(METHODS), "Truncated back-propagation, or online.", flag_values=FLAGS)

TRACED_FLAGS = ("seed", "learning_rate")


def chain(dtype: str = "float32") -> Cell:
    """The chain: carry s [B, 23], output s[..., :1]; it reads nothing. `dtype` is that of the product's factors."""
    count = POSITIVE + NEGATIVE
    matrix = jnp.asarray(0.5 * (np.eye(count) + np.eye(count, k=-1)), dtype)  # of s A^T
    signs = jnp.asarray([1.0] * POSITIVE + [-1.0] * NEGATIVE, jnp.float32)

    def step(params, carry, x):
        del x
        carry = matmul(carry, matrix) + jnp.broadcast_to(params["theta"] * signs, carry.shape)
        return carry, carry[..., :1]

    return from_step(
        lambda key, in_features: {"theta": jnp.float32(START)},
        lambda params, batch_shape: jnp.zeros((*batch_shape, count), jnp.float32),
        step,
    )


def loss(ys: jax.Array, targets: jax.Array) -> jax.Array:
    """(s[0] - 1)^2 / 2 per step and sequence."""
    return jnp.square(ys[..., 0] - targets) / 2


def build(config: SimpleNamespace) -> Experiment:
    """Gradient descent along one endless run of the chain; a training step is `LENGTH` time steps."""
    cell, (name, k) = chain(config.dtype), METHODS[config.method]
    xs, targets = jnp.zeros((k, config.batch_size, 1)), jnp.ones((k, config.batch_size))

    def estimator(key):
        return estimators.GRADIENTS[name](cell, loss, k, k, key, key)

    def init(hparams):
        key = jax.random.key(hparams["seed"])
        params = cell.init(key, 1)
        state = estimator(key).init(params, cell.initial_carry(params, (config.batch_size,)), xs)
        return initial_state(key, params, make_optimizer(config, hparams["learning_rate"]).init(params), state)

    def update(hparams, data, state: State):
        del data
        optimizer, gradient = make_optimizer(config, hparams["learning_rate"]), estimator(state.key)

        def chunk(state, _):
            params, opt_state, carried = state
            value, grads, carried = gradient.update(params, carried, xs, targets)
            # Of the sum of the losses of the chunk, so that the data alone decide how far a param can get.
            grads = jax.tree.map(lambda g: k * g, grads)
            change, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, change), opt_state, carried), value

        start = state.params, state.opt_state, state.carry
        (params, opt_state, carried), losses = jax.lax.scan(chunk, start, length=LENGTH // k)
        state = state._replace(step=state.step + 1, params=params, opt_state=opt_state, carry=carried)
        return state, {"loss": losses.mean()}

    def evaluate(hparams, data, state: State):
        """The loss where the chain comes to rest, and theta."""
        del hparams, data
        theta = state.params["theta"]
        return {"loss": jnp.square(2 * (POSITIVE - NEGATIVE) * theta - 1) / 2, "theta": theta}

    def finish(hparams, state, run):
        """The loss and theta after the last update."""
        return {f"test_{name}": float(value) for name, value in evaluate(hparams, (), state).items()}

    return Experiment(Program(init, update, evaluate, ()), finish)


SWEEP = f"method={','.join(METHODS)};learning_rate=1e-5,1e-4;seed=0:5"


def report(runs: list[Run]) -> list[Section]:
    """Theta along the run."""
    figures, [axes] = separate("theta")
    for index, (label, members) in enumerate(groups(runs).items()):
        records = [[record for record in run.records() if record["split"] == "validation"] for run in members]
        steps = [LENGTH * record["step"] for record in records[0]]
        curve(
            axes,
            label,
            steps,
            [list(row) for row in zip(*([r["theta"] for r in rows] for rows in records), strict=True)],
            index,
        )
    axes.axhline(0.5 / (POSITIVE - NEGATIVE), color="0.4", linestyle="--", linewidth=1)
    axes.set(xlabel="time steps", ylabel="theta (dashed: the minimum)", yscale="symlog")
    text = "A gradient that ends before the influence changes its sign moves theta away from the minimum."
    return [Section("Theta", text, figures, summary(runs, ["test_theta", "test_loss"]))]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
