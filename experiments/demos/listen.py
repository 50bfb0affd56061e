"""Prints the detections of a trained network of `experiments.spotting` in a wav file (mono, 8 kHz, 16 bit).

    python -m experiments.demos.listen --run=DIR --file=FILE.wav

FILE.wav may be the run's own stream.wav. Each 10 ms of sound pass through `spotter.listen`, whose carry is all that is
kept between them; nothing is read ahead. Up to 10 ms of silence complete the last frame.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from experiments import spotting
from experiments.demos import command
from experiments.shared import detection
from seqjax.data import spoken_digits
from seqjax.models import spotter

__all__ = ["detections", "main"]

FLAGS = command.flags("spotting")
command.path(FLAGS, "file", "wav file (mono, 8 kHz, 16 bit)")


def detections(
    made: spotter.Spotter, digit: int, threshold: float, samples: np.ndarray
) -> Iterator[tuple[float, float]]:
    """Seconds and score of each detection, as soon as it is made.

    Args:
      made: the network.
      digit: the digit to detect.
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


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the detections line by line; returns the exit code of `command.main`."""
    return command.main(sys.modules[__name__], _listen, argv)


def _listen(config: SimpleNamespace) -> None:
    run, _ = command.trained(config.run, spotting)
    made, digit, threshold = spotting.read(run)
    samples = spoken_digits.read_wav(Path(config.file).read_bytes(), config.file)
    for seconds, score in detections(made, digit, threshold, samples):
        print(f"{seconds:9.2f} s   {digit}   log odds {score:6.2f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
