"""Pairs of English and French sentences."""

import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from seqjax.data import pairs
from seqjax.data.builders import prepare

__all__ = ["FrenchEnglish", "french_english"]


class FrenchEnglish(tfds.core.GeneratorBasedBuilder):
    """English sentences with French translations, of 2017-09-29: one split, `train`, in the order of `pairs.load`.

    The site serves only its newest archive, so a download may be newer than this version, and is then refused: put the
    archive of 2017-09-29 into manual_dir, or read a newer one with `pairs.load`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "The archive of 2017-09-29."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: fra-eng.zip in manual_dir is used instead of a download."
    url = "http://www.manythings.org/anki/fra-eng.zip"
    sha256 = "2546838ae46e0eac4c02ab7032ea0a02a006074a5340077a36a9444f41e02888"  # of fra.txt

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Sentence pairs of the Tatoeba project, selected by manythings.org.",
            features=tfds.features.FeaturesDict({"english": tfds.features.Text(), "french": tfds.features.Text()}),
            supervised_keys=("english", "french"),
            homepage="http://www.manythings.org/anki/",
            license="CC BY 2.0 (attribution: manythings.org/anki and tatoeba.org)",
            citation="""@misc{tatoeba,
  title = {Tab-delimited bilingual sentence pairs from the Tatoeba project},
  author = {{Tatoeba contributors} and Kelly, Charles},
  year = {2017},
  url = {http://www.manythings.org/anki/},
}""",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        file = prepare.fetch(dl_manager, self.url, "fra-eng.zip")
        content = pairs.read(file)
        if (found := hashlib.sha256(content).hexdigest()) != self.sha256:
            raise ValueError(
                f"{file}: its pairs have sha256 {found}, expected {self.sha256}: not the archive of 2017-09-29; put"
                " that into manual_dir, or read this one with pairs.load"
            )
        return {"train": self._generate_examples(pairs.parse(content, str(file)))}

    def _generate_examples(self, found: pairs.Pairs) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (english, french) in enumerate(zip(*found, strict=True)):
            yield i, {"english": english, "french": french}


def french_english(data_dir: prepare.DataDir = None, manual_dir: prepare.DataDir = None) -> pairs.Pairs:
    """What `pairs.load` returns, prepared under `data_dir` if it is not there yet; see `jena_climate`."""
    rows = prepare.records(prepare.prepared(FrenchEnglish, data_dir, manual_dir), "train")
    return pairs.Pairs(*(tuple(row[side].decode() for row in rows) for side in ("english", "french")))
