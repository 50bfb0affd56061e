"""Prints what a network of `experiments.spotting` hears in a wav file (mono, 8 kHz, 16 bit), as it hears it.

    python -m experiments.demos.listen RUN FILE.wav

RUN is a run directory; FILE.wav may be its own stream.wav. Each 10 ms of sound go through `spotter.listen`, whose carry
is all that is kept; nothing is read ahead. After the last sample come up to 10 ms of silence, to a whole frame.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import spotting
from experiments.shared import detection
from seqjax.data import spoken_digits
from seqjax.models import spotter


def detections(
    made: spotter.Spotter, digit: int, threshold: float, samples: np.ndarray
) -> Iterator[tuple[float, float]]:
    """Seconds and score of each detection, as soon as it is made.

    Args:
      made: the network.
      digit: what it listens for.
      threshold: of the log odds.
      samples: int16 [N].
    """
    hop, rate = made.settings.hop, made.settings.rate

    @jax.jit
    def hear(carry, chunk):
        carry, logits = spotter.listen(made, carry, chunk.astype(jnp.float32) / 32768)
        return carry, spotter.log_odds(logits[0], digit)

    carry, waiting = spotter.start(made), 0
    whole = np.pad(samples, (0, -len(samples) % hop))  # the last frame ends in silence
    for frame, chunk in enumerate(whole.reshape(-1, hop)):
        carry, score = hear(carry, chunk)
        if waiting == 0 and score >= threshold:
            yield (frame + 1) * hop / rate, float(score)
            waiting = detection.REST
        else:
            waiting = max(waiting - 1, 0)


def main() -> None:
    """Exits with 0; with 2 for arguments that are not a run and a wav file."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    run, file = map(Path, sys.argv[1:])
    try:
        made, digit, threshold = spotting.read(run / "spotter.npz")
        samples = spoken_digits.read_wav(file.read_bytes(), str(file))
    except (OSError, ValueError) as error:
        print(f"experiments.demos.listen: {error}", file=sys.stderr)
        sys.exit(2)
    for seconds, score in detections(made, digit, threshold, samples):
        print(f"{seconds:9.2f} s   {digit}   log odds {score:6.2f}", flush=True)


if __name__ == "__main__":
    main()
