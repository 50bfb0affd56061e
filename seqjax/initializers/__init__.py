"""Initial values of weights and gate biases.

A weight initializer is `(key, shape [rows, H], dtype) -> array`, as in `jax.nn.initializers`; a cell calls it once per
gate, each time with a new key, or once for all gates side by side if it is `jointly(...)`. A bias initializer is
`(key, gates, hidden, dtype) -> array [len(gates) * hidden]`: it receives the names of the gates, to distinguish them.
The defaults of other libraries are in `seqjax.presets`.
"""

from jax.nn.initializers import zeros

from seqjax.initializers.biases import (
    BiasInitializer,
    chrono,
    from_jax,
    gate_bias,
    uniform_bias,
    uniform_gate,
    unit_forget,
)
from seqjax.initializers.weights import (
    Initializer,
    Jointly,
    critical,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    identity,
    jointly,
    lecun_normal,
    lecun_uniform,
    normal,
    np_rnn,
    orthogonal,
    per_gate,
    rotations,
    sparse,
    spectral_radius,
    uniform,
    unitary,
)

__all__ = [
    "BiasInitializer",
    "Initializer",
    "Jointly",
    "chrono",
    "critical",
    "from_jax",
    "gate_bias",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "identity",
    "jointly",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "np_rnn",
    "orthogonal",
    "per_gate",
    "rotations",
    "sparse",
    "spectral_radius",
    "uniform",
    "uniform_bias",
    "uniform_gate",
    "unit_forget",
    "unitary",
    "zeros",
]
