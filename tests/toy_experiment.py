"""How fast does gradient descent find the minimum of a bowl?

A tiny experiment for the tests, with every attribute of an experiment, and flags to make it fail.
"""

import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import optax
from absl import flags

from experiments.harness import command
from experiments.harness.experiment import Experiment
from experiments.harness.flags import training_flags
from experiments.harness.optimizer import make_optimizer
from experiments.harness.report import Section, curve, groups, panels
from seqjax.train import Program, initial_state

FLAGS = training_flags(steps=20, steps_per_call=10, evaluate_every=10, optimizer="sgd", learning_rate=0.1)
flags.DEFINE_enum("model", "line", ["line", "curve"], "Shape of the bowl.", flag_values=FLAGS)
flags.DEFINE_string("truncation", "full", "A value that may hold ':'.", flag_values=FLAGS)
flags.DEFINE_float("delay", 0.0, "Seconds that building the program takes.", flag_values=FLAGS)
flags.DEFINE_enum(
    "fault", "none", ["none", "program", "finish", "pause", "kill"], "What goes wrong.", flag_values=FLAGS
)

TRACED_FLAGS = ("seed", "learning_rate")


def build(config):
    """Minimizes sum(|w - data|^p) from a random start."""
    time.sleep(config.delay)
    if config.fault == "program":
        raise ValueError("the program is\nbroken")
    if config.fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    power = {"line": 2, "curve": 4}[config.model]

    def loss_of(params, data):
        return jnp.sum((params["w"] - data) ** power)

    def init(hparams):
        key, start = jax.random.split(jax.random.key(hparams["seed"]))
        params = {"w": jax.random.normal(start, (3,))}
        return initial_state(key, params, make_optimizer(config, hparams["learning_rate"]).init(params))

    def update(hparams, data, state):
        loss, grads = jax.value_and_grad(loss_of)(state.params, data)
        optimizer = make_optimizer(config, hparams["learning_rate"])
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), {"loss": loss}

    def evaluate(hparams, data, state):
        del hparams
        return {"loss": loss_of(state.params, data), "distance": jnp.max(jnp.abs(state.params["w"] - data))}

    program = Program(init, update, evaluate, jnp.array([1.0, 2.0, 3.0]))

    def finish(hparams, state, run):
        if config.fault == "finish":
            raise FileNotFoundError("nothing to finish with")
        if config.fault == "pause" and (run.directory.parent / "seed=0" / "result.json").exists():
            time.sleep(5)
        return {"final_loss": evaluate(hparams, program.data, state)["loss"].item(), "sample": "not a number"}

    return Experiment(program, finish)


SWEEP = "model=line,curve;seed=0:2"


def report(runs):
    """One figure."""
    figure, axes = panels()
    for index, (label, members) in enumerate(groups(runs).items()):
        losses = [[run.result()["final_loss"] for run in members]]
        curve(axes[0, 0], label, [0], losses, index)
    return [Section("Final <losses>", "First.\n\nSecond & last.", [figure], [["a", "b"], [1, None]])]


if __name__ == "__main__":
    command.main(sys.modules[__name__])
