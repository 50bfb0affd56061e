"""The optimizer of the flags: an optax optimizer under a learning-rate schedule, with gradient clipping."""

import functools
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
from absl import flags as absl_flags

from experiments.harness import ending


def make_optimizer(config: SimpleNamespace, learning_rate: jax.Array | float) -> optax.GradientTransformation:
    """Returns the optimizer of the flags: clip by global norm, then optax.NAME under the schedule.

    The learning rate rises linearly from 0 over `warmup_steps` updates, then stays (constant), or falls to 0 at
    `steps` along half a cosine wave (cosine) or a line (linear). Gradients are cast to the dtypes of the params first.

    Args:
        config: with optimizer, schedule, warmup_steps, steps, clip_norm.
        learning_rate: float or traced float32 [] (a lane's own), the rate after the warmup.

    Raises:
        ValueError: optax has no such optimizer.
    """
    after = config.steps - config.warmup_steps
    rate: optax.Schedule = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, after),
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, after),
    }[config.schedule]()
    if config.warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, config.warmup_steps)
        rate = optax.join_schedules([warmup, rate], [config.warmup_steps])
    transform = _factory(config.optimizer)(learning_rate=rate)
    if config.clip_norm:
        transform = optax.chain(optax.clip_by_global_norm(config.clip_norm), transform)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates = jax.tree.map(lambda update, param: update.astype(param.dtype), updates, params)
        # Optax mixes integer counters with floats, which strict promotion (on in our tests) forbids.
        with jax.numpy_dtype_promotion("standard"):
            return transform.update(updates, state, params)

    return optax.GradientTransformation(transform.init, update)


def _factory(name: str) -> Callable[..., optax.GradientTransformation]:
    def is_factory(member: Any) -> bool:
        return inspect.isfunction(member) and next(iter(inspect.signature(member).parameters), "") == "learning_rate"

    factory = getattr(optax, name, None)
    if factory is None or not is_factory(factory):
        known = sorted(name for name, member in vars(optax).items() if is_factory(member))
        known = [name for name in known if not name.startswith(("_", "scale_by"))]
        raise ValueError(f"optax has no optimizer {name!r}; expected one of {', '.join(known)}")
    return factory


@functools.cache
def is_usable(name: str) -> bool:
    """Returns True for a factory of optax that can train; raises absl's ValidationError for any other name."""
    # Some factories (lbfgs, polyak_sgd) need more than gradients; an abstract update finds them before any run.
    config = SimpleNamespace(optimizer=name, schedule="constant", steps=1, warmup_steps=0, clip_norm=0.0)

    def update(params: Any) -> Any:
        transform = make_optimizer(config, 1e-3)
        return transform.update(params, transform.init(params), params)

    try:
        jax.eval_shape(update, {"w": np.zeros((2, 2), np.float32)})
    except (ValueError, TypeError) as error:
        raise absl_flags.ValidationError(f"cannot train with it: {ending.summary(error)}") from None
    return True
