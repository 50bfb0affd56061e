"""Penn Treebank."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from seqjax.data import ptb
from seqjax.data.builders import prepare

__all__ = ["PennTreebank", "penn_treebank"]


class PennTreebank(tfds.core.GeneratorBasedBuilder):
    """Penn Treebank in the preprocessing of T. Mikolov: train, validation, test, one record each."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: simple-examples.tgz, or ptb.{train,valid,test}.txt (or .gz), in manual_dir is used instead of a"
        " download."
    )
    url = "http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz"
    md5 = ptb.MD5

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="The Wall Street Journal part of the Penn Treebank, as 10,000 words in lower case, one sentence"
            " per line.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="http://www.fit.vutbr.cz/~imikolov/rnnlm/",
            license="Should be free for research purposes (its README); the corpus itself is sold by the LDC.",
            citation="""@inproceedings{mikolov2010recurrent,
  title = {Recurrent neural network based language model},
  author = {Mikolov, Tom{\\'a}{\\v s} and Karafi{\\'a}t, Martin and Burget, Luk{\\'a}{\\v s} and
            {\\v C}ernock{\\'y}, Jan and Khudanpur, Sanjeev},
  booktitle = {Interspeech},
  year = {2010},
}""",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        try:
            texts = ptb.load(Path(dl_manager.manual_dir))
        except (AssertionError, FileNotFoundError):  # tfds raises the first for a missing or empty folder
            texts = ptb.load(Path(dl_manager.download(self.url)))
        for part, text in texts.items():
            found = hashlib.md5(text.encode()).hexdigest()
            if found != self.md5[part]:
                raise ValueError(f"{ptb.FILES[part]}: md5 {found}, expected {self.md5[part]}: not the official text")
        return {part: self._generate_examples(text) for part, text in texts.items()}

    def _generate_examples(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        yield 0, {"text": text}


def penn_treebank(data_dir: prepare.DataDir = None, manual_dir: prepare.DataDir = None) -> dict[str, str]:
    """The texts as `ptb.load` returns them, prepared under `data_dir` if they are not there yet; see `jena_climate`."""
    builder = prepare.prepared(PennTreebank, data_dir, manual_dir)
    return {part: prepare.records(builder, part)[0]["text"].decode() for part in ptb.FILES}
