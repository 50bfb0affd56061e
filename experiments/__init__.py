"""Experiments: one readable file each, whose docstring has the question, the commands and what was measured.

Studies of gradients, noise and initial weights:
    bptt_vs_tbptt, recurrent_dropout, initialization
Tasks:
    temperature, sentiment, language, translation, music, speech, spotting, anomalies, series, mnist, ball, direction,
    next_frame, captions
Commands that use what a task trained:
    generate (writes text), translate, listen (to a wav file), watch (a stream of numbers)
What one or two tasks lean on:
    corpora, reading (language), translation_baselines, detection (spotting), videos (direction, next_frame)
What carries all of them:
    base (flags, runs), supervised and tasks (training on whole sequences), command (and its ending), sweep (and its
    ledger), executors (with its workers and jobs), report (with its plots and page), texts
"""

import sys
from pathlib import Path

from experiments import ending

# `python -m experiments.NAME` and launch.py, at their first import: the next ones take seconds, in which nothing is
# started yet. Where somebody else imports an experiment, signals are none of our business.
if sys.argv[:1] == ["-m"] or Path((sys.argv or [""])[0]).name == "launch.py":
    ending.at_once()
