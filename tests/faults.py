"""Faults that happen to runs, for real and in great number: what survives them.

python tests/faults.py          all of them, and docs/reliability.md; fails if anything was lost, wrong, silent or hung
python tests/faults.py WORDS    those whose name contains all the words; writes nothing

The faults are in the files `faults_of_*.py`. A new one is a function that does one trial in an empty directory.
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

import faults_of_runs
import jax

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
ENDS = ("lost", "wrong", "silent", "hung")
Trial = Callable[[Path], str]


def attempt(trial: Trial) -> str:
    """How one trial ended; one that cannot be done counts as lost."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return trial(Path(folder))
        except Exception as error:
            traceback.print_exc()
            return f"lost: the trial itself failed: {error!r}"


def main(words: list[str]) -> int:
    """Runs the trials, as many at a time as there are processors."""
    random.seed(0)
    chosen = [one for one in faults_of_runs.trials() if all(word in one[0] for word in words)]
    ends: dict[str, list[str]] = {}
    began = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, number, trial in chosen:
            ends[name] = list(pool.map(attempt, [trial] * number))
            counts = Counter(end.split(":")[0] for end in ends[name])
            print(f"{time.monotonic() - began:5.0f} s  {name}: {dict(counts)}", flush=True)
            for end in ends[name]:
                if end != "survived":
                    print(f"         {end}", flush=True)
    if not words:
        PAGE.write_text(page(ends, (time.monotonic() - began) / 60))
    return int(any(end != "survived" for found in ends.values() for end in found))


def page(ends: dict[str, list[str]], minutes: float) -> str:
    """docs/reliability.md."""
    rows = []
    for name, found in ends.items():
        counts = Counter(end.split(":")[0] for end in found)
        rows.append(f"| {name} | {len(found)} | {counts['survived']} | {' | '.join(str(counts[e]) for e in ENDS)} |")
    trials = sum(map(len, ends.values()))
    return f"""# Reliability

`make test-faults` does real faults to real runs: processes that are killed, started twice or stopped, disks that are
full, files that go bad. A trial survives where the run or the sweep, once it is started again, ends with the results
and the records of one that nothing happened to, bit for bit but for its clocks; or where a fault that cannot be
repaired, such as records that are gone, is refused by a message that names the file, and the cure that it names leads
to the same end. *Lost* is work or a run that cannot be brought to its end; *wrong*, other results; *silent*, a fault
that nobody was told of; *hung*, a process that does not end.

Last run: {date.today()}, {trials} trials in {minutes:.0f} minutes on {os.cpu_count()} processors, Python
{platform.python_version()}, JAX {jax.__version__}.

| fault | trials | survived | lost | wrong | silent | hung |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
