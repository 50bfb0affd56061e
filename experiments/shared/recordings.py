"""The spoken digits that `speech` and `spotting` train and test on."""

import sys
from functools import cache

from seqjax.data import spoken_digits

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


@cache  # read once per process, where a sweep builds many experiments
def load(data_dir: str | None) -> spoken_digits.Recordings:
    """The recordings in --data_dir; without one, generated ones, with a note on stderr."""
    if data_dir is not None:
        return spoken_digits.load(data_dir)
    print("no --data_dir: the recordings are generated, and their numbers mean nothing for speech", file=sys.stderr)
    return spoken_digits.generated(speakers=SPEAKERS)
