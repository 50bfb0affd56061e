"""Recurrent cells: functions that return a `seqjax.core.Cell`."""

from seqjax.cells.building import LSTMCarry
from seqjax.cells.continuous import cfc, ct_rnn, ltc
from seqjax.cells.convolution import conv_lstm
from seqjax.cells.gated import gru, gru_reset_before, lstm, peephole_lstm
from seqjax.cells.layers import stack
from seqjax.cells.linear import QRNNCarry, min_gru, min_lstm, peephole_sru, qrnn, sru
from seqjax.cells.lstm_variants import coupled_lstm, layer_norm_lstm, multiplicative_lstm, projected_lstm
from seqjax.cells.matrix import MLSTMCarry, delta_net, gated_linear_attention, mlstm
from seqjax.cells.memory import FastWeightsCarry, fast_weights
from seqjax.cells.orthogonal import exp_rnn
from seqjax.cells.simple import antisymmetric_rnn, ind_rnn, janet, mgu, rnn, ugrnn
from seqjax.cells.state_space import lru, rg_lru, s4d, s5
from seqjax.cells.xlstm import SLSTMCarry, slstm

__all__ = [
    "FastWeightsCarry",
    "LSTMCarry",
    "MLSTMCarry",
    "QRNNCarry",
    "SLSTMCarry",
    "antisymmetric_rnn",
    "cfc",
    "conv_lstm",
    "coupled_lstm",
    "ct_rnn",
    "delta_net",
    "exp_rnn",
    "fast_weights",
    "gated_linear_attention",
    "gru",
    "gru_reset_before",
    "ind_rnn",
    "janet",
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
    "peephole_sru",
    "projected_lstm",
    "qrnn",
    "rg_lru",
    "rnn",
    "s4d",
    "s5",
    "slstm",
    "sru",
    "stack",
    "ugrnn",
]
