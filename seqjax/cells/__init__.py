"""Recurrent cells: functions that return a `seqjax.core.Cell`."""

from seqjax.cells.continuous import cfc, ltc
from seqjax.cells.gated import LSTMCarry, gru, gru_reset_before, lstm, peephole_lstm, rnn
from seqjax.cells.linear import min_gru, min_lstm, qrnn, sru
from seqjax.cells.lstm_variants import coupled_lstm, layer_norm_lstm, multiplicative_lstm, projected_lstm
from seqjax.cells.matrix import MLSTMCarry, delta_net, gated_linear_attention, mlstm
from seqjax.cells.simple import antisymmetric_rnn, ct_rnn, ind_rnn, mgu, ugrnn
from seqjax.cells.stack import stack
from seqjax.cells.state_space import lru, rg_lru, s4d
from seqjax.cells.xlstm import SLSTMCarry, slstm

__all__ = [
    "LSTMCarry",
    "MLSTMCarry",
    "SLSTMCarry",
    "antisymmetric_rnn",
    "cfc",
    "coupled_lstm",
    "ct_rnn",
    "delta_net",
    "gated_linear_attention",
    "gru",
    "gru_reset_before",
    "ind_rnn",
    "layer_norm_lstm",
    "lru",
    "lstm",
    "ltc",
    "mgu",
    "min_gru",
    "min_lstm",
    "mlstm",
    "multiplicative_lstm",
    "peephole_lstm",
    "projected_lstm",
    "qrnn",
    "rg_lru",
    "rnn",
    "s4d",
    "slstm",
    "sru",
    "stack",
    "ugrnn",
]
