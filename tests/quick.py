"""What `make test` runs where running everything takes long; `make test-slow` runs it all."""

from collections.abc import Iterable

import pytest

# A cell of each kind of recurrence and of params.
KINDS = (
    "rnn", "lstm", "gru_reset_before", "min_gru", "lru", "s4d", "gated_linear_attention", "delta_net", "mlstm", "slstm",
    "projected_lstm", "layer_norm_lstm", "conv_lstm", "fast_weights", "exp_rnn", "ltc",
)  # fmt: skip


def few(names: Iterable[str], quick: Iterable[str] = KINDS) -> list:
    """Parameters of a test, of which `make test` runs those of `quick`, and `make test-slow` all."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
