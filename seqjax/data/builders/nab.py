"""The Numenta anomaly benchmark."""

import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from seqjax.data import nab
from seqjax.data.builders import prepare

__all__ = ["NumentaAnomalyBenchmark", "digest", "numenta_anomaly_benchmark"]

_COMMIT = "ea702d75cc2258d9d7dd35ca8e5e2539d71f3140"


class NumentaAnomalyBenchmark(tfds.core.GeneratorBasedBuilder):
    """Numenta anomaly benchmark: one split, `train`, of 58 series in the order of their names.

    A record is a series of `nab.load`: times int64 [T] (seconds since 1970), values float64 [T], windows int32
    [W, 2].
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: NAB.tar.gz, an archive of the repository, in manual_dir is used."
    url = f"https://github.com/numenta/NAB/archive/{_COMMIT}.tar.gz"
    # Of the content, see `digest`: GitHub may regenerate archives, and does not guarantee their checksums.
    sha256 = "f5dbeed44e8d5bf8bceee44bd1738bb70303b2097e5791d2b1bd224adfa4e3a3"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="58 real and artificial univariate series, 365,558 rows, with 116 windows in which"
            " something was wrong; for anomaly detection in streams.",
            features=tfds.features.FeaturesDict(
                {
                    "name": tfds.features.Text(),
                    "times": tfds.features.Tensor(shape=(None,), dtype=np.int64),
                    "values": tfds.features.Tensor(shape=(None,), dtype=np.float64),
                    "windows": tfds.features.Tensor(shape=(None, 2), dtype=np.int32),
                }
            ),
            homepage="https://github.com/numenta/NAB",
            license="MIT License (repository of the benchmark)",
            citation="""@inproceedings{lavin2015evaluating,
  title = {Evaluating Real-Time Anomaly Detection Algorithms: The Numenta Anomaly Benchmark},
  author = {Lavin, Alexander and Ahmad, Subutai},
  booktitle = {IEEE International Conference on Machine Learning and Applications},
  year = {2015},
  url = {https://arxiv.org/abs/1510.03336},
}""",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        file = prepare.fetch(dl_manager, self.url, "NAB.tar.gz")
        corpus = nab.load(file)
        if (found := digest(corpus)) != self.sha256:
            raise ValueError(f"{file}: sha256 {found} of its series, expected {self.sha256}: another file, or damaged")
        return {"train": self._generate_examples(corpus)}

    def _generate_examples(self, corpus: dict[str, nab.Series]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (name, series) in enumerate(corpus.items()):
            yield number, {**series._asdict(), "name": name, "times": series.times.astype(np.int64)}


def digest(corpus: dict[str, nab.Series]) -> str:
    """The sha256 of names, times, values and windows of all series, little-endian, in their order."""
    content = hashlib.sha256()
    for name, series in corpus.items():
        content.update(name.encode())
        for values, dtype in ((series.times.astype(np.int64), "<i8"), (series.values, "<f8"), (series.windows, "<i4")):
            content.update(values.astype(dtype).tobytes())
    return content.hexdigest()


def numenta_anomaly_benchmark(
    data_dir: prepare.DataDir = None, manual_dir: prepare.DataDir = None
) -> dict[str, nab.Series]:
    """The series as `nab.load` returns them, prepared under `data_dir` if they are not there; see `jena_climate`."""
    builder = prepare.prepared(NumentaAnomalyBenchmark, data_dir, manual_dir)
    return {
        record["name"].decode(): nab.Series(
            record["times"].astype("datetime64[s]"), record["values"], record["windows"].reshape(-1, 2)
        )
        for record in prepare.records(builder, "train")
    }
