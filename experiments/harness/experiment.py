"""What an experiment is: the attributes of its module, and what it builds for one configuration.

An experiment is a module `experiments/NAME.py` with

    FLAGS = training_flags(steps=2000)            # its own FlagValues: the training flags and its own
    TRACED_FLAGS = ("seed", "learning_rate")      # flags that are traced scalars in the compiled program
    SWEEP = "model=lstm,gru;seed=0:3"             # the sweep it proposes, which answers its question
    def build(config): ...                        # -> Experiment(program, finish) of one configuration
    def report(runs): ...                         # -> its sections of the report (`experiments.harness.report.Section`)
    synthetic_data = without_data("digits")       # optional: what is generated where there is no data set
    if __name__ == "__main__":
        command.main(sys.modules[__name__])

`build` gets a config without the flags in TRACED_FLAGS, so it cannot accidentally read a value that differs between the
lanes (the members of a compiled sweep). Traced flags arrive as `hparams`, the first argument of the functions in
`Program` and of `finish`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from absl.flags import FlagValues

from experiments.harness import flags
from experiments.harness.page import Section
from seqjax.train import Program, Run, State

Hparams = Mapping[str, jax.Array]
# The attributes that every experiment has; `synthetic_data` is optional.
ATTRIBUTES = ("FLAGS", "TRACED_FLAGS", "SWEEP", "build", "report")


class Experiment(NamedTuple):
    """One configuration of an experiment, ready to be trained.

    Attributes:
      program: what is trained.
      finish: `(hparams, state, run) -> dict` for result.json, called once after the last update; it writes arrays and
        figures to the run directory.
      left_out: the part of the data set that training does not read, in one line; None if it reads all of it.
    """

    program: Program
    finish: Callable[[Hparams, State, Run], dict[str, Any]]
    left_out: str | None = None


def without_data(what: str, **where: Any) -> Callable[[Mapping[str, Any]], str | None]:
    """Returns `synthetic_data` of an experiment: `flags -> what` is generated in place of a data set, or None.

    Data are generated without --data_dir, in the configurations with the flags `where`. A run records it in its result,
    and the report marks the numbers that rest on such data.
    """

    def synthetic_data(flags: Mapping[str, Any]) -> str | None:
        return what if flags["data_dir"] is None and all(flags[name] == where[name] for name in where) else None

    return synthetic_data


def name_of(module: ModuleType) -> str:
    """Returns the name that `python -m` and `import` know a module by, also when it runs as __main__."""
    return module.__spec__.name if module.__spec__ else module.__name__


@dataclasses.dataclass(frozen=True)
class Definition:
    """The attributes of an experiment's module, as the harness passes them around.

    Attributes:
      name: the name to import it by, or to run it by (`python -m`).
      doc: its docstring.
      flags, traced_flags, sweep, build, report, synthetic_data: the attributes of the module.
    """

    name: str
    doc: str
    flags: FlagValues
    traced_flags: tuple[str, ...]
    sweep: str
    build: Callable[[SimpleNamespace], Experiment]
    report: Callable[[Sequence[Run]], list[Section]]
    synthetic_data: Callable[[Mapping[str, Any]], str | None]

    @classmethod
    def of(cls, module: ModuleType) -> Self:
        """Reads the attributes of a module, also of one that runs as __main__."""
        synthetic_data = getattr(module, "synthetic_data", lambda flags: None)
        values = (getattr(module, attribute) for attribute in ATTRIBUTES)
        return cls(name_of(module), module.__doc__ or "", *values, synthetic_data=synthetic_data)

    def parse(self, given: Sequence[str] | Mapping[str, Any]) -> SimpleNamespace:
        """Returns the configuration, as `flags.parse` does."""
        return flags.parse(self.flags, given)

    def hparams(self, config: SimpleNamespace) -> dict[str, jax.Array]:
        """Returns the seed and the traced flags as scalar arrays: int32 for integers, float32 for floats."""
        dtypes = {int: jnp.int32, float: jnp.float32}
        values = {name: getattr(config, name) for name in dict.fromkeys(("seed", *self.traced_flags))}
        for name, value in values.items():
            if type(value) not in dtypes:
                raise TypeError(f"TRACED_FLAGS of {self.name}: --{name} is {value!r}, expected an integer or a float")
        return {name: jnp.asarray(value, dtypes[type(value)]) for name, value in values.items()}

    def untraced(self, config: SimpleNamespace) -> SimpleNamespace:
        """Returns the configuration that `build` gets: without the traced flags."""
        return SimpleNamespace(**{name: v for name, v in vars(config).items() if name not in self.traced_flags})


define = Definition.of
