"""Flax NNX modules over any cell: `Recurrent`, `Bidirectional`, `Stack`, `RNNCell`, and a `Dropout` with a traced rate.

    rnn = seqjax.nnx.Recurrent(seqjax.cells.lstm(64), 14, rngs=nnx.Rngs(0))
    ys = rnn(xs)                                       # xs [B, T, 14], ys [B, T, 64]

Weights are `nnx.Param`, noise draws from the stream "dropout", and `train()`, `eval()` and `nnx.view` set
`deterministic`, as in Flax's own layers. The calls are those of `nnx.RNN`; docs/flax.md maps each argument of the
recurrent layers of Flax, Keras and PyTorch.

Any regularizer goes in as a function, its rate by keyword:

    Recurrent(cell, 14, regularizers=[partial(recurrent_dropout, rate=0.25), partial(zoneout, rate=0.1)], rngs=rngs)

A rate is a Python number, which is part of the graph definition, or a JAX scalar, which is part of the state. So a
sweep over rates is a `jax.vmap`, of a function that builds the module with a traced rate, or of one that merges it from
a state among its arguments and sets `rnn.regularizers = [partial(recurrent_dropout, rate=rate)]`. The Python number 0
omits the regularizer; a JAX scalar 0 draws noise that changes nothing.
"""

from seqjax.extras import needed

with needed("flax", by=__name__):
    from seqjax.nnx.combine import Bidirectional, Stack
    from seqjax.nnx.noise import Dropout, Rngs
    from seqjax.nnx.recurrent import Recurrent, RNNCell

__all__ = ["Bidirectional", "Dropout", "RNNCell", "Recurrent", "Rngs", "Stack"]
