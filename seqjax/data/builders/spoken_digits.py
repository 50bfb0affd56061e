"""The Free Spoken Digit Dataset."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from seqjax.data import spoken_digits
from seqjax.data.builders import prepare

__all__ = ["FreeSpokenDigits", "free_spoken_digits"]


class FreeSpokenDigits(tfds.core.GeneratorBasedBuilder):
    """3,000 recordings of ten digits by six speakers: one split, `train`, in the order of `spoken_digits.load`.

    (The builder `spoken_digit` of TensorFlow Datasets has release 1.0.9, with five of the speakers.)
    """

    VERSION = tfds.core.Version("1.0.10")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.10": "Release 1.0.10 of the data set."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: free-spoken-digit-dataset-1.0.10.tar.gz in manual_dir is used instead of a download."
    )
    url = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz"
    # Of the recordings: GitHub may regenerate archives, and does not guarantee their checksums.
    digest = "1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Recordings of spoken English digits, mono, 8 kHz, 16 bit, trimmed to have near minimal silence"
            " at the beginning and the end.",
            features=tfds.features.FeaturesDict(
                {
                    "samples": tfds.features.Tensor(shape=(None,), dtype=np.int16),
                    "digit": tfds.features.ClassLabel(num_classes=10),
                    "speaker": tfds.features.Text(),
                    "index": tfds.features.Scalar(np.int32),
                }
            ),
            supervised_keys=("samples", "digit"),
            homepage="https://github.com/Jakobovski/free-spoken-digit-dataset",
            license="CC BY-SA 4.0",
            citation="""@misc{jackson2016free,
  title = {Free Spoken Digit Dataset},
  author = {Jackson, Zohar and Souza, César and Flaks, Jason and Pan, Yuxin and Nicolas, Hereman and Thite, Adhish},
  year = {2016},
  url = {https://github.com/Jakobovski/free-spoken-digit-dataset},
}""",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        file = prepare.fetch(dl_manager, self.url, "free-spoken-digit-dataset-1.0.10.tar.gz")
        found = spoken_digits.digest(file)
        if found != self.digest:
            raise ValueError(f"{file}: recordings {found}, expected {self.digest}: other files, or damaged")
        return {"train": self._generate_examples(spoken_digits.load(file))}

    def _generate_examples(self, recordings: spoken_digits.Recordings) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (samples, digit, speaker, index) in enumerate(zip(*recordings, strict=True)):
            yield i, {"samples": samples, "digit": int(digit), "speaker": speaker, "index": index}


def free_spoken_digits(
    data_dir: prepare.DataDir = None, manual_dir: prepare.DataDir = None
) -> spoken_digits.Recordings:
    """What `spoken_digits.load` returns, prepared under `data_dir` if it is not there yet; see `jena_climate`."""
    builder = prepare.prepared(FreeSpokenDigits, data_dir, manual_dir)
    rows = prepare.records(builder, "train")
    digits, indices = (np.array([row[key] for row in rows], np.int32) for key in ("digit", "index"))
    speakers = tuple(row["speaker"].decode() for row in rows)
    return spoken_digits.Recordings(tuple(row["samples"] for row in rows), digits, speakers, indices)
