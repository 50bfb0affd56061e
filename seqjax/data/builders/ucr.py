"""Problems of the UCR and UEA archives of labelled time series."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from seqjax.data import ucr
from seqjax.data.builders import prepare

__all__ = ["Ucr", "ucr_series"]


class Ucr(tfds.core.GeneratorBasedBuilder):
    """Labelled series: train and test as published, one configuration per problem.

    The archive publishes no checksums. Those here are of the files in aeon 1.6.0, from which they are downloaded. It
    does not include ECG200, whose checksums are of the text files of the archive, which must be in manual_dir.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: NAME_TRAIN.ts and NAME_TEST.ts in manual_dir are used instead of a download. ECG200 must be there,"
        " as ECG200_TRAIN.txt and ECG200_TEST.txt, from https://timeseriesclassification.com."
    )
    url = "https://raw.githubusercontent.com/aeon-toolkit/aeon/v1.6.0/aeon/datasets/data"
    sha256: ClassVar[dict[str, tuple[str, str]]] = {
        "ArrowHead": (
            "a83c470aaf611a5f5284377cce27a5fc9f6292bc3d110257b0fd4905ced5ee72",
            "5417dab42626d41df5e435bb22458c2df40dfad4bcd3b59559bbe72e20e84904",
        ),
        "BasicMotions": (
            "8dc43cc6306cb679c888c01e26f91772ac4441a916da43bac8b79734a538b9d6",
            "79213102bc6fca1a398ad98ce1185dff0208fa3d1465e687f48288946b0ff8dc",
        ),
        "ECG200": (
            "ed96989ec5d5ba7d651b4a3e3e905a8e09931999ed25458914f21faac0f7b3ce",
            "c665e09a1b1d2dedb37de7aef2a81866632e98f498460a0977f4d9bfebaffbb1",
        ),
        "GunPoint": (
            "f842401779fd9800d247d8b33121a1a4643710a19b24917dbdd9a060ca8630d5",
            "79332750788a6227b325b96bd0d70130c8eb707b9731f8d7dec62b7a7d36017e",
        ),
        "ItalyPowerDemand": (
            "341269cb7e6cef96846b30e774580beec79addb93848ba360145219115a74b7c",
            "26122451f87dd0387ef90b18bc8a86c041371b8a1c068004922b939971247144",
        ),
        "JapaneseVowels": (
            "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
            "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
        ),
        "OSULeaf": (
            "86b9d6e860414ffd26cebc62fff84ffb37fa588ef3e5bf79e4094a437c36ddfc",
            "6c549dd354f9e42d5985fa5fab75321ca9acefc7873457e71467fc8a31f107ce",
        ),
    }
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [tfds.core.BuilderConfig(name=name) for name in sha256]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Labelled series: outlines, motions, electrocardiograms, speech, power demand.",
            features=tfds.features.FeaturesDict(
                {
                    "steps": tfds.features.Scalar(np.int32),
                    "values": tfds.features.Tensor(shape=(None,), dtype=np.float32),  # step after step
                    "label": tfds.features.Text(),
                }
            ),
            homepage="https://timeseriesclassification.com",
            license="For research; the archive asks to be cited.",
            citation="""@article{dau2019ucr,
  title = {The {UCR} Time Series Archive},
  author = {Dau, Hoang Anh and Bagnall, Anthony and Kamgar, Kaveh and Yeh, Chin-Chia Michael and Zhu, Yan and
            Gharghabi, Shaghayegh and Ratanamahatana, Chotirat Ann and Keogh, Eamonn},
  journal = {IEEE/CAA Journal of Automatica Sinica},
  volume = {6},
  number = {6},
  pages = {1293--1305},
  year = {2019},
}""",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        problem: str = self.builder_config.name  # pyright: ignore[reportOptionalMemberAccess]  (there are BUILDER_CONFIGS)
        generators = {}
        for part, expected in zip(("train", "test"), self.sha256[problem], strict=True):
            name = f"{problem}_{part.upper()}.{'txt' if problem == 'ECG200' else 'ts'}"
            file = prepare.fetch(dl_manager, f"{self.url}/{problem}/{name}", name)
            prepare.check(file, "sha256", expected)
            generators[part] = self._generate_examples(ucr.parse(name, file.read_bytes()))
        return generators

    def _generate_examples(self, rows: list[tuple[np.ndarray, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (values, label) in enumerate(rows):
            yield i, {"steps": len(values), "values": values.ravel().astype(np.float32), "label": label}


def ucr_series(
    problem: str, data_dir: prepare.DataDir = None, manual_dir: prepare.DataDir = None
) -> dict[str, ucr.Series]:
    """What `ucr.load` returns, prepared under `data_dir` if it is not there yet; see `jena_climate`."""
    builder = prepare.prepared(partial(Ucr, config=problem), data_dir, manual_dir)
    rows = {name: prepare.records(builder, name) for name in ("train", "test")}
    parts = [
        [(row["values"].reshape(row["steps"], -1), row["label"].decode()) for row in part] for part in rows.values()
    ]
    return dict(zip(rows, ucr.pack(parts), strict=True))
