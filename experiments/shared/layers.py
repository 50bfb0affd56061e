"""The recurrent layers that the classifiers of sequences choose from."""

from collections.abc import Callable

from seqjax import cells, wrappers
from seqjax.core import Cell


def _two(cell: Callable[[int], Cell]) -> Callable[[int], Cell]:
    return lambda units: cells.stack(cell(units), cell(units))


CELLS: dict[str, Callable[[int], Cell]] = {
    "rnn": cells.rnn,
    "lstm": cells.lstm,
    "bilstm": cells.lstm,
    "gru": cells.gru,
    "min_gru": _two(cells.min_gru),
    "lru": _two(lambda units: wrappers.highway(cells.lru(units))),
}
AS_WIDE = ("lru",)  # whose outputs are as wide as their inputs
