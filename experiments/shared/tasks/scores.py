"""Losses and scores of classes, per step."""

import jax.numpy as jnp
import optax

from seqjax.arrays import Array


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Cross-entropy in nats of integer targets, [..., V] and [...] to [...]."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)


def of_classes(logits: Array, targets: Array) -> dict[str, Array]:
    """Cross-entropy and accuracy of integer targets, [..., V] and [...] to [...]."""
    right = (jnp.argmax(logits, -1) == targets).astype(jnp.float32)
    return {"loss": cross_entropy(logits, targets), "accuracy": right}
