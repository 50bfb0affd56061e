"""TensorFlow Datasets builders, without TensorFlow: prepared once as array_record, read back as the loaders do.

    climate = builders.jena_climate("~/tensorflow_datasets")
    text = builders.tiny_shakespeare("~/tensorflow_datasets", manual_dir="downloads")
    parts = builders.imdb_reviews("~/tensorflow_datasets")

`download_and_prepare` downloads the official file, or takes it from `manual_dir` when it is there, and checks it
before anything is written: the csv by its git blob id (nobody publishes a checksum of the zip), the others by a hash.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from seqjax.data import jena, reviews, text

__all__ = ["JenaClimate", "TinyShakespeare", "jena_climate", "tiny_shakespeare"]

DataDir = str | os.PathLike[str] | None


class JenaClimate(tfds.core.GeneratorBasedBuilder):
    """Weather in Jena 2009-2016, every 10 minutes, 14 variables: one split, `train`, that is one record.

    The record holds the cleaned series of `jena.load`: values float32 [N, 14], times int64 [N] (seconds since 1970),
    columns and the report line.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: jena_climate_2009_2016.csv.zip or jena_climate_2009_2016.csv in manual_dir is used, not downloaded."
    )
    url = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/jena_climate_2009_2016.csv.zip"
    blob = jena.OFFICIAL_BLOB  # git blob id of the csv

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Weather recorded every 10 minutes on the roof of the Max Planck Institute for"
            " Biogeochemistry in Jena, Germany, 2009 to 2016.",
            features=tfds.features.FeaturesDict(
                {
                    "values": tfds.features.Tensor(shape=(None, len(jena.COLUMNS)), dtype=np.float32),
                    "times": tfds.features.Tensor(shape=(None,), dtype=np.int64),
                    "columns": tfds.features.Text(),
                    "report": tfds.features.Text(),
                }
            ),
            homepage="https://www.bgc-jena.mpg.de/wetter/",
            license="CC BY 4.0",
            citation="""@misc{jena_climate,
  title = {Weather station Beutenberg, Jena, 2009-2016},
  author = {{Max Planck Institute for Biogeochemistry}},
  url = {https://www.bgc-jena.mpg.de/wetter/},
}""",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        file = _fetch(dl_manager, self.url, "jena_climate_2009_2016.csv")
        return {"train": self._generate_examples(jena.load(file, columns=jena.COLUMNS, blob=self.blob))}

    def _generate_examples(self, climate: jena.Climate) -> Iterator[tuple[int, dict[str, Any]]]:
        times = climate.times.astype(np.int64)
        columns = "\n".join(climate.columns)
        yield 0, {"values": climate.values, "times": times, "columns": columns, "report": climate.report}


class TinyShakespeare(tfds.core.GeneratorBasedBuilder):
    """Tiny Shakespeare, 1,115,394 characters: 90 % train, 5 % validation, 5 % test, contiguous, one record each."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: input.txt in manual_dir is used, not downloaded."
    url = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    sha256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="40,000 lines of Shakespeare from a variety of his plays.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="https://github.com/karpathy/char-rnn",
            license="The texts are in the public domain; the repository is MIT.",
            citation="""@misc{karpathy_char_rnn,
  title = {char-rnn},
  author = {Karpathy, Andrej},
  year = {2015},
  url = {https://github.com/karpathy/char-rnn},
}""",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        file = _fetch(dl_manager, self.url, "input.txt")
        _check(file, "sha256", self.sha256)
        parts = text.split(text.read(file), (0.9, 0.05, 0.05))
        return {name: self._generate_examples(part) for name, part in zip(_SPLITS, parts, strict=True)}

    def _generate_examples(self, part: str) -> Iterator[tuple[int, dict[str, Any]]]:
        yield 0, {"text": part}


class ImdbReviews(tfds.core.GeneratorBasedBuilder):
    """Large movie review data set: train and test, 25,000 labelled reviews each, in the order of `reviews.load`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: aclImdb_v1.tar.gz in manual_dir is used, not downloaded."
    url = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
    md5 = "7c2ac02c03563afcf9b574c7e56c153a"

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Movie reviews from IMDB, half of them positive (7 stars or more) and half negative (4 or"
            " fewer), with the film that each is about.",
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=["neg", "pos"]),
                    "stars": tfds.features.Scalar(np.int32),
                    "film": tfds.features.Text(),
                }
            ),
            supervised_keys=("text", "label"),
            homepage="https://ai.stanford.edu/~amaas/data/sentiment/",
            license="For research; its authors ask to be cited. The reviews are by users of IMDB.",
            citation="""@inproceedings{maas2011learning,
  title = {Learning Word Vectors for Sentiment Analysis},
  author = {Maas, Andrew L. and Daly, Raymond E. and Pham, Peter T. and Huang, Dan and Ng, Andrew Y. and
            Potts, Christopher},
  booktitle = {Proceedings of the 49th Annual Meeting of the Association for Computational Linguistics},
  year = {2011},
}""",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        file = _fetch(dl_manager, self.url, "aclImdb_v1.tar.gz")
        _check(file, "md5", self.md5)
        return {name: self._generate_examples(part) for name, part in reviews.load(file).items()}

    def _generate_examples(self, part: reviews.Reviews) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (review, label, stars, film) in enumerate(zip(*part, strict=True)):
            yield i, {"text": review, "label": int(label), "stars": stars, "film": film}


def jena_climate(data_dir: DataDir = None, manual_dir: DataDir = None) -> jena.Climate:
    """The record as `jena.load` returns it, prepared under `data_dir` if it is not there yet.

    Args:
      data_dir: where prepared data sets live; default: that of TensorFlow Datasets.
      manual_dir: a folder that may hold the csv or its zip.
    """
    builder = _prepared(JenaClimate, data_dir, manual_dir)
    record = _record(builder, "train")
    return jena.Climate(
        values=record["values"],
        times=record["times"].astype("datetime64[s]"),
        columns=tuple(record["columns"].decode().split("\n")),
        report=record["report"].decode(),
        source=Path(builder.data_dir),
    )


def tiny_shakespeare(data_dir: DataDir = None, manual_dir: DataDir = None) -> str:
    """The text as `text.read` returns it, prepared under `data_dir` if it is not there yet; see `jena_climate`."""
    builder = _prepared(TinyShakespeare, data_dir, manual_dir)
    return "".join(_record(builder, name)["text"].decode() for name in _SPLITS)


def imdb_reviews(data_dir: DataDir = None, manual_dir: DataDir = None) -> dict[str, reviews.Reviews]:
    """What `reviews.load` returns, prepared under `data_dir` if it is not there yet; see `jena_climate`."""
    builder = _prepared(ImdbReviews, data_dir, manual_dir)
    parts = {}
    for name in ("train", "test"):
        source: Any = builder.as_data_source(split=name)  # pyright: ignore[reportCallIssue]
        rows = [source[i] for i in range(len(source))]
        texts, films = (tuple(row[key].decode() for row in rows) for key in ("text", "film"))
        labels, stars = (np.array([row[key] for row in rows], np.int32) for key in ("label", "stars"))
        parts[name] = reviews.Reviews(texts, labels, stars, films)
    return parts


_SPLITS = ("train", "validation", "test")


def _fetch(dl_manager: tfds.download.DownloadManager, url: str, stem: str) -> Path:
    """The file of this name (or its zip) in manual_dir, else the download.

    `dl_manager.download` looks into manual_dir by itself only for files whose checksum is registered.
    """
    try:
        manual_dir = Path(dl_manager.manual_dir)
    except AssertionError:  # how tfds says that the folder is missing or empty
        return Path(dl_manager.download(url))
    for name in (stem, f"{stem}.zip"):
        if (manual_dir / name).is_file():
            return manual_dir / name
    return Path(dl_manager.download(url))


def _check(file: Path, algorithm: str, expected: str) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, algorithm).hexdigest()
    if found != expected:
        raise ValueError(f"{file}: {algorithm} {found}, expected {expected}: not the same file, or damaged")


def _prepared(
    builder_class: type[tfds.core.GeneratorBasedBuilder], data_dir: DataDir, manual_dir: DataDir
) -> tfds.core.GeneratorBasedBuilder:
    builder = builder_class(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def _record(builder: tfds.core.GeneratorBasedBuilder, split: str) -> dict[str, Any]:
    source: Any = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]  (hidden by a decorator)
    return source[0]
