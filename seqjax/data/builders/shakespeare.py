"""Tiny Shakespeare."""

from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from seqjax.data import text
from seqjax.data.builders import prepare

__all__ = ["TinyShakespeare", "tiny_shakespeare"]

_SPLITS = ("train", "validation", "test")


class TinyShakespeare(tfds.core.GeneratorBasedBuilder):
    """Tiny Shakespeare, 1,115,394 characters: 90 % train, 5 % validation, 5 % test, contiguous, one record each."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: input.txt in manual_dir is used instead of a download."
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
        file = prepare.fetch(dl_manager, self.url, "input.txt")
        prepare.check(file, "sha256", self.sha256)
        parts = text.split(text.read(file), (0.9, 0.05, 0.05))
        return {name: self._generate_examples(part) for name, part in zip(_SPLITS, parts, strict=True)}

    def _generate_examples(self, part: str) -> Iterator[tuple[int, dict[str, Any]]]:
        yield 0, {"text": part}


def tiny_shakespeare(data_dir: prepare.DataDir = None, manual_dir: prepare.DataDir = None) -> str:
    """The text as `text.read` returns it, prepared under `data_dir` if it is not there yet; see `jena_climate`."""
    builder = prepare.prepared(TinyShakespeare, data_dir, manual_dir)
    return "".join(prepare.records(builder, name)[0]["text"].decode() for name in _SPLITS)
