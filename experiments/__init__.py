"""Experiments: one readable file each, whose docstring has the question, the commands and the headline number.

`python -m experiments.NAME` is one run, `python launch.py --experiment=NAME` a sweep.

Studies of gradients, noise and initial weights:
    bptt_vs_tbptt, influence, vanishing, memory, recurrent_dropout, uncertainty, initialization
Tasks:
    temperature, sentiment, language, translation, addition, music, speech, spotting, anomalies, series, mnist, ball,
    mackey_glass, direction, next_frame, captions
Commands that use what a task trained:
    demos/: generate (writes text), translate, listen (to a wav file), watch (a stream of numbers)
What several of them share:
    shared/: tasks, corpora, recordings, moving digits, recurrent layers, language models, detection, confusion
    matrices, baselines of translation
What runs all of them:
    harness/: the contract (experiment.py), flags, optimizer, runs, training programs, the command, sweeps, executors,
    reports
"""

import sys
from pathlib import Path

from experiments.harness import ending

# `python -m experiments.NAME` and launch.py, at their first import: the next ones take seconds, in which nothing has
# started yet. Anyone else who imports an experiment keeps their own signal handlers.
if sys.argv[:1] == ["-m"] or Path((sys.argv or [""])[0]).name == "launch.py":
    ending.at_once()

from seqjax.extras import needed

with needed("experiments", "experiments", "flax", "matplotlib", "optax", "orbax", "tqdm"):
    from absl import flags as _flags  # noqa: F401
