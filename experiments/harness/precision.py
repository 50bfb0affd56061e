"""Mixed precision, `--dtype=bfloat16`: products take factors of 16 bits and sum in float32.

Weights are trained, stored and updated in float32; the loss and the evaluation see them through `narrow`. So their
gradients come in 16 bits, and `make_optimizer` takes them in float32. Carries, outputs, losses and metrics are float32
by the rules of `seqjax.arrays`.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from experiments.harness.experiment import Experiment
from seqjax.arrays import Params
from seqjax.train import State


def narrow(config: SimpleNamespace, params: Params) -> Params:
    """Params as products take them: matrices and larger float32 leaves in --dtype, others as they are.

    Vectors are biases, gains and decays, which enter no product of matrices: 8 bits would only blur them.
    """
    if config.dtype == "float32":
        return params

    def factor(leaf: Any) -> Any:
        return leaf.astype(config.dtype) if leaf.ndim > 1 and leaf.dtype == jnp.float32 else leaf

    return jax.tree.map(factor, params)


def narrowed(config: SimpleNamespace, experiment: Experiment) -> Experiment:
    """The experiment, whose `evaluate` and `finish` get the params of a state through `narrow`."""
    if config.dtype == "float32":
        return experiment
    evaluate: Any = experiment.program.evaluate  # every experiment has one

    def seen(state: State) -> State:
        best = state.best._replace(params=narrow(config, state.best.params))
        return state._replace(params=narrow(config, state.params), best=best)

    program = experiment.program._replace(evaluate=lambda hparams, data, state: evaluate(hparams, data, seen(state)))
    return experiment._replace(
        program=program, finish=lambda hparams, state, run: experiment.finish(hparams, seen(state), run)
    )
