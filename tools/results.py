"""The sweeps behind docs/studies.md, one after the other, as far as the time reaches: `make results`.

    python -m tools.results --data_dir=DIR      all studies; those that need data want the directory of the data sets
    python -m tools.results recall text         these two

Each is a command of `launch.py` with a directory of its own below --out, so that the same command resumes where it was
stopped, and finished sweeps are only reported again. A study starts if the hours that are left suffice for it; what is
left out is listed at the end, with the reason. The figures that the page shows are copied to docs/figures.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
RESUMES = "the same command resumes"


class Study(NamedTuple):
    """A sweep that the page rests on.

    Attributes:
        flags: of `launch.py`, as a shell reads them.
        minutes: that it takes on two cores.
        figures: of its report, by the name in docs/figures.
        data: whether it reads a data set.
    """

    flags: str
    minutes: float
    figures: Mapping[str, str] = types.MappingProxyType({})
    data: bool = False


STUDIES = {
    "main": Study("", 3, {"truncation": "what-a-truncation-costs"}),
    "recall": Study(
        "--task=recall --units=32 --chrono=100 --batch_size=32 --steps=500 --evaluate_every=100 --accumulate "
        "--sweep='lag=5,10,20,40,80;truncation=full,1:1,4:4,8:8,16:16,32:32,64:64;learning_rate=3e-3,1e-2,3e-2;seed=0:5'",
        20,
        {"lag-and-truncation": "lag-and-truncation-task-recall-gradient-bptt"},
    ),
    "text": Study(
        "--sweep='truncation=full,32:32,8:8,2:2;accumulate=true,false;learning_rate=2e-3,4e-3,8e-3;seed=0:5' --widen=2",
        35,
        {"truncation-on-text": "what-a-truncation-costs"},
    ),
    "state": Study(
        "--truncation=16:16 --sweep='reset_rate=0,0.1,0.5,1;learning_rate=2e-3,4e-3,8e-3;seed=0:5'",
        10,
    ),
    "estimators": Study(
        "--task=recall --model=gru --units=12 --embedding_size=0 --batch_size=16 --steps=500 --evaluate_every=250 "
        "--accumulate --truncation=4:4 --sweep='lag=10,20,40;gradient=bptt,artbp,adaptive,rtrl,snap1,eprop,rflo,uoro,"
        "kf_rtrl;learning_rate=3e-3,1e-2;seed=0:5'",
        20,
        {"estimators-and-lag": "lag-and-estimator-task-recall-truncation-4-4"},
    ),
    "influence": Study("--experiment=influence", 2),
    "vanishing": Study("--experiment=vanishing --widen=1", 20, {"remedies": "remedies-accuracy"}),
    "memory": Study("--experiment=memory", 25, {"gradient-by-cell": "reach-of-the-gradient"}),
    "biases": Study(
        "--experiment=initialization --lag=50 --steps=1500 --steps_per_call=250 --evaluate_every=250 "
        "--sweep='task=adding,copy,permuted;forget_bias=0,1,2,chrono,uniform_gate;learning_rate=3e-3,1e-2;seed=0:5'",
        20,
        data=True,
    ),
    "matrices": Study(
        "--experiment=initialization --task=rows --model=rnn --steps=1500 --steps_per_call=250 --evaluate_every=250 "
        "--sweep='recurrent=orthogonal,identity,half_identity,glorot,he,uniform,critical,np_rnn,sparse,radius_0.5,"
        "radius_0.9,radius_1.2,radius_1.5;learning_rate=1e-3,3e-3,1e-2;seed=0:5'",
        15,
        {"initialization": "prediction-rows-first_gradient_log10"},
        data=True,
    ),
    "dropout": Study(
        "--experiment=recurrent_dropout --task=chorales --units=128 --batch_size=8 --steps=1000 --steps_per_call=100 "
        "--evaluate_every=100 --sweep='where=none,recurrent,per_step,output,input,zoneout,per_gate,weights;"
        "dropout=0.25,0.5;learning_rate=3e-3,1e-2;seed=0:5'",
        40,
        {"dropout": "which-place-is-worth-what-task-chorales-model-lstm-gain"},
        data=True,
    ),
    "dropout_jena": Study(
        "--experiment=recurrent_dropout --task=temperature --steps=600 --steps_per_call=100 --evaluate_every=200 "
        "--sweep='where=none,input,recurrent,per_gate,output,zoneout,per_step;dropout=0.25,0.5;learning_rate=3e-3,1e-2;"
        "seed=0:5'",
        20,
        data=True,
    ),
    "dropout_cells": Study(
        "--experiment=recurrent_dropout --task=chorales --units=128 --batch_size=8 --steps=1000 --steps_per_call=100 "
        "--evaluate_every=100 --sweep='model=rnn,gru;where=none,recurrent,per_step,output;dropout=0.25,0.5;"
        "learning_rate=3e-3,1e-2;seed=0:5'",
        25,
        data=True,
    ),
    "uncertainty": Study(
        "--experiment=uncertainty --steps=819 --batch_size=128 --checkpoint_every=0",
        15,
        {"coverage": "predictive-distributions-reliability"},
        data=True,
    ),
    "temperature": Study(
        "--experiment=temperature --steps=1638 --sweep='model=naive,dense,conv,lstm,dropout_lstm,stacked_gru,bilstm,"
        "min_gru,lru,zoneout_lstm;learning_rate=3e-3,1e-2;seed=0:5'",
        100,
        {"jena": "forecasts-error"},
        data=True,
    ),
}


def commands(names: Sequence[str], out: Path, data_dir: str | None) -> dict[str, list[str]]:
    """Returns the command of each study that can be run; one that needs data has none without a directory."""
    found = {}
    for name in names:
        study = STUDIES[name]
        if not study.data or data_dir:
            data = [f"--data_dir={data_dir}"] if study.data else []
            found[name] = [sys.executable, "launch.py", *shlex.split(study.flags), *data, f"--workdir={out / name}"]
    return found


def run(names: Sequence[str], out: Path, data_dir: str | None, hours: float) -> dict[str, str]:
    """Runs the studies; returns those that have no result, with the reason."""
    end, left = time.monotonic() + 3600 * hours, {}
    found = commands(names, out, data_dir)
    for name in names:
        study = STUDIES[name]
        if name not in found:
            left[name] = "it reads a data set; give --data_dir=DIR"
        elif time.monotonic() + 60 * study.minutes > end:
            left[name] = f"it takes {study.minutes:g} minutes, and {max(0, end - time.monotonic()) / 60:.0f} are left"
        else:
            print(f"\n== {name}: {shlex.join(['python', *found[name][1:]])}", flush=True)
            code = subprocess.run(found[name], cwd=ROOT, check=False).returncode
            if code in (130, 143):
                return {**left, **dict.fromkeys(names[names.index(name) :], f"stopped; {RESUMES}")}
            # 1: runs without a result, which may be the result (a loss that is not finite); the report counts them.
            if code > 1 or not _copied(out / name / "figures", study):
                left[name] = f"exit code {code}, and no figures; {RESUMES}"
    return left


def _copied(source: Path, study: Study) -> bool:
    """Copies the figures of a study, if all of them are there."""
    figures = {FIGURES / f"{target}.svg": source / f"{figure}.svg" for target, figure in study.figures.items()}
    if not all(figure.exists() for figure in figures.values()):
        return False
    for target, figure in figures.items():
        shutil.copy(figure, target)
    return True


def main() -> int:
    """Runs the studies that are named, or all, and lists what was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*STUDIES, []], help=", ".join(STUDIES))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "results", help="directory of the sweeps")
    parser.add_argument("--data_dir", help="directory of the data sets")
    parser.add_argument("--hours", type=float, default=3.0, help="of all studies together (default: 3)")
    flags = parser.parse_args()
    left = run(flags.names or list(STUDIES), flags.out.absolute(), flags.data_dir, flags.hours)
    for name, reason in left.items():
        print(f"left out: {name}: {reason}", file=sys.stderr)
    return int(any(reason.endswith(RESUMES) for reason in left.values()))


if __name__ == "__main__":
    sys.exit(main())
