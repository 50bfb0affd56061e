"""Recurrent cells: functions that return a `seqjax.core.Cell`."""

from seqjax.cells.gated import LSTMCarry, gru, gru_reset_before, lstm, peephole_lstm, rnn
from seqjax.cells.linear import min_gru
from seqjax.cells.stack import stack

__all__ = ["LSTMCarry", "gru", "gru_reset_before", "lstm", "min_gru", "peephole_lstm", "rnn", "stack"]
