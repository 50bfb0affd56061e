"""docs/flax.md names every argument of the layers that it maps, as installed, and only what exists here."""

import importlib
import inspect
import os
import re
import typing
from pathlib import Path

import pytest

import seqjax
from tests.agree import relaxed

PAGE = (Path(__file__).parents[1] / "docs" / "flax.md").read_text()
os.environ.setdefault("KERAS_BACKEND", "jax")
NNX = ["RNN", "Bidirectional", "LSTMCell", "OptimizedLSTMCell", "SimpleCell", "GRUCell"]
KERAS = ["SimpleRNN", "LSTM", "GRU", "Bidirectional", "RNN", "StackedRNNCells", "ConvLSTM1D", "ConvLSTM2D", "Masking"]
KERAS += ["Embedding", "TimeDistributed", "SimpleRNNCell", "LSTMCell", "GRUCell", "Layer"]
LAYERS = [
    *(f"flax.nnx.{name}" for name in NNX),
    *(f"flax.linen.{name}" for name in [*NNX, "MGUCell", "ConvLSTMCell"]),
    *(f"keras.layers.{name}" for name in KERAS),
    *(f"torch.nn.{name}" for name in ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"]),
    *(f"torch.nn.utils.rnn.{name}" for name in ["pack_padded_sequence", "pad_packed_sequence"]),
]


def sections():
    """Of every section its layers, and the rows of its table."""
    found = []
    for part in re.split(r"^### ", PAGE, flags=re.M)[1:]:
        title, _, body = part.partition("\n")
        rows = re.findall(r"^\| (.*) \| (.*) \|$", body.partition("\n## ")[0], flags=re.M)
        assert rows[0] == ("argument", "here"), title
        found.append((title.split(", "), rows[1:]))
    return found


SECTIONS = sections()
MAPPED = {layer: rows for layers, rows in SECTIONS for layer in layers}


def parameters(function):
    """Names of the arguments of a function, without self and collections."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return {p.name for p in found if p.kind not in variadic and p.name != "self"}


def arguments(layer):
    """Of the constructor, of the call and of the initial carry."""
    if not inspect.isclass(layer):
        return parameters(layer)
    found = parameters(layer.__init__)
    for overload in typing.get_overloads(layer.__init__):
        found |= parameters(overload)
    if not found:  # an RNN of PyTorch takes anything and hands it to its base
        found = parameters(layer.__mro__[1].__init__) - {"mode"}
    for name in ("call", "forward", "initialize_carry") if "call" in dir(layer) or "forward" in dir(layer) else ():
        if hasattr(layer, name) and layer.__name__ != "Layer":
            found |= parameters(getattr(layer, name))
    if layer.__module__.startswith("flax."):
        found |= parameters(layer.__call__)
        found |= parameters(layer.initialize_carry) if hasattr(layer, "initialize_carry") else set()
    return found


def test_every_layer_is_there():
    assert set(LAYERS) <= set(MAPPED)


@pytest.mark.parametrize("name", MAPPED)
def test_every_argument_is_named(name):
    module, _, layer = name.rpartition(".")
    pytest.importorskip(module.split(".")[0], reason="reads the signatures of a library that is not installed")
    with relaxed():
        layer = getattr(importlib.import_module(module), layer)
    named = {argument for first, _ in MAPPED[name] for argument in re.findall(r"`(\w+)`", first)}
    missing = arguments(layer) - named
    assert arguments(layer)
    assert not missing, f"docs/flax.md does not say where {sorted(missing)} of {name} went"


def test_no_argument_stands_twice():
    for layers, rows in SECTIONS:
        named = [argument for first, _ in rows for argument in re.findall(r"`(\w+)`", first)]
        assert len(named) == len(set(named)), layers
        assert all(here.strip() for _, here in rows)


def test_what_it_points_to_exists():
    rooms = ("cells", "wrappers", "regularizers", "noise", "initializers", "presets", "importers", "core")
    found = re.findall(rf"(?<![\w.])({'|'.join(rooms)})\.(\w+)", PAGE)
    assert len(found) > 40
    for room, name in found:
        assert hasattr(importlib.import_module(f"seqjax.{room}"), name), f"{room}.{name}"
    taken = {
        name
        for layer in (seqjax.nnx.Recurrent, seqjax.nnx.Bidirectional, seqjax.nnx.Stack)
        for function in (layer.__init__, layer.__call__)
        for name in parameters(function)
    }
    taken |= parameters(seqjax.cells.lstm) | parameters(seqjax.wrappers.with_embedding)
    for option in re.findall(r"`(\w+)=", "\n".join(here for _, rows in SECTIONS for _, here in rows)):
        assert option in taken, f"{option}= is no argument here"


def test_its_code_runs():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    with relaxed():
        exec(code, {})
