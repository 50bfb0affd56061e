"""The large movie review data set."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from seqjax.data import reviews
from seqjax.data.builders import prepare

__all__ = ["ImdbReviews", "imdb_reviews"]


class ImdbReviews(tfds.core.GeneratorBasedBuilder):
    """Large movie review data set: train and test, 25,000 labelled reviews each, in the order of `reviews.load`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: aclImdb_v1.tar.gz in manual_dir is used instead of a download."
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
        file = prepare.fetch(dl_manager, self.url, "aclImdb_v1.tar.gz")
        prepare.check(file, "md5", self.md5)
        return {name: self._generate_examples(part) for name, part in reviews.load(file).items()}

    def _generate_examples(self, part: reviews.Reviews) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (review, label, stars, film) in enumerate(zip(*part, strict=True)):
            yield i, {"text": review, "label": int(label), "stars": stars, "film": film}


def imdb_reviews(data_dir: prepare.DataDir = None, manual_dir: prepare.DataDir = None) -> dict[str, reviews.Reviews]:
    """What `reviews.load` returns, prepared under `data_dir` if it is not there yet; see `jena_climate`."""
    builder = prepare.prepared(ImdbReviews, data_dir, manual_dir)
    parts = {}
    for name in ("train", "test"):
        rows = prepare.records(builder, name)
        texts, films = (tuple(row[key].decode() for row in rows) for key in ("text", "film"))
        labels, stars = (np.array([row[key] for row in rows], np.int32) for key in ("label", "stars"))
        parts[name] = reviews.Reviews(texts, labels, stars, films)
    return parts
