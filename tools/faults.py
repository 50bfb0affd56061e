"""Faults that happen to runs, for real and in great number: what survives them.

python -m tools.faults          all of them, and docs/reliability.md; fails if anything was lost, wrong, silent or hung
python -m tools.faults WORDS    those whose name contains all the words; writes nothing

The faults are in the files `faults_of_*.py`: functions that do one trial in an empty directory and return "survived",
or a sentence that begins with what went wrong. Damaged data files are those of `fuzz_readers.py`.
"""

import os
import platform
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import jax

from tools import faults_of_runs, faults_of_sweeps, faults_of_workers
from tools.fuzz_readers import fuzz

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
ENDS = ("lost", "wrong", "silent", "hung", "not run")
FUZZ, FILES = "damaged data files, all readers", 10_000
Trial = Callable[[Path], str]


def attempt(trial: Trial) -> str:
    """How one trial ended; one that cannot be done counts as lost."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return trial(Path(folder))
        except Exception as error:
            traceback.print_exc()
            return f"lost: the trial itself failed: {error!r}"


def faults() -> dict[str, list[Trial]]:
    """All trials, by fault; what is behind a comma in the name of a trial tells it from others of the same fault."""
    found: dict[str, list[Trial]] = {}
    workers = [one for one in faults_of_workers.trials() for _ in range(3 if "Slurm" in one[0] else 4)]
    for name, trial in [*faults_of_runs.trials(), *faults_of_sweeps.trials(), *workers]:
        found.setdefault(name.partition(",")[0], []).append(trial)
    return found


def main(words: list[str]) -> int:
    """Runs the trials, as many at a time as there are processors."""
    random.seed(0)
    ends: dict[str, list[str]] = {}
    began = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, trials in faults().items():
            if all(word in name for word in words):
                # One after the other in this thread: signals are heard here alone, and a cluster needs its ports.
                alone = any(word in name for word in ("Slurm", "worker", "launcher"))
                ends[name] = list((map if alone else pool.map)(attempt, trials))
                report(name, ends[name], time.monotonic() - began)
    if all(word in FUZZ for word in words):
        failures = fuzz(FILES)["failures"]
        ends[FUZZ] = ["survived"] * (FILES - len(failures)) + [f"wrong: {failure}" for failure in failures]
        report(FUZZ, ends[FUZZ], time.monotonic() - began)
    if not words:
        PAGE.write_text(page(ends, (time.monotonic() - began) / 60))
    return int(any(kind(end) not in ("survived", "not run") for found in ends.values() for end in found))


def kind(end: str) -> str:
    """In one word, how a trial ended."""
    word = end.partition(":")[0]
    return word if word in ("survived", *ENDS) else "wrong"


def report(name: str, ends: list[str], seconds: float) -> None:
    """How the trials of a fault ended."""
    print(f"{seconds:5.0f} s  {name}: {dict(Counter(map(kind, ends)))}", flush=True)
    for end in set(ends) - {"survived"}:
        print(f"         {end}", flush=True)


def page(ends: dict[str, list[str]], minutes: float) -> str:
    """docs/reliability.md."""
    rows = []
    for name, found in ends.items():
        counts = Counter(map(kind, found))
        rows.append(f"| {name} | {len(found)} | {counts['survived']} | {' | '.join(str(counts[e]) for e in ENDS)} |")
    trials = sum(map(len, ends.values()))
    return f"""# Reliability

`make test-faults` injects real faults into real runs: processes are killed, started twice or stopped, disks are full,
files are damaged. A trial survives if the run or the sweep, once restarted, ends with the results and records of an
undisturbed one, bit for bit except for its clocks. It also survives if a fault that cannot be repaired, such as
missing records, is refused with a message that names the file and a cure, and the cure leads to the same end. *Lost*:
work is lost, or a run cannot be finished; *wrong*: the results differ; *silent*: a fault goes unreported; *hung*: a
process does not end.

Last run: {date.today()}, {trials} trials in {minutes:.0f} minutes on {os.cpu_count()} processors, Python
{platform.python_version()}, JAX {jax.__version__}.

| fault | trials | survived | lost | wrong | silent | hung | not run |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
