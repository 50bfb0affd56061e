"""The climate record of Jena."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from seqjax.data import jena
from seqjax.data.builders import prepare

__all__ = ["JenaClimate", "jena_climate"]


class JenaClimate(tfds.core.GeneratorBasedBuilder):
    """Weather in Jena 2009-2016, every 10 minutes, 14 variables: one split, `train`, of one record.

    The record is the cleaned series of `jena.load`: values float32 [N, 14], times int64 [N] (seconds since 1970),
    columns and the report line.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Optional: jena_climate_2009_2016.csv.zip or jena_climate_2009_2016.csv in manual_dir is used instead of a"
        " download."
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
        file = prepare.fetch(dl_manager, self.url, "jena_climate_2009_2016.csv")
        return {"train": self._generate_examples(jena.load(file, columns=jena.COLUMNS, blob=self.blob))}

    def _generate_examples(self, climate: jena.Climate) -> Iterator[tuple[int, dict[str, Any]]]:
        times = climate.times.astype(np.int64)
        columns = "\n".join(climate.columns)
        yield 0, {"values": climate.values, "times": times, "columns": columns, "report": climate.report}


def jena_climate(data_dir: prepare.DataDir = None, manual_dir: prepare.DataDir = None) -> jena.Climate:
    """The record as `jena.load` returns it, prepared under `data_dir` if it is not there yet.

    Args:
      data_dir: directory of the prepared data sets; default: that of TensorFlow Datasets.
      manual_dir: a folder that may contain the csv or its zip.
    """
    builder = prepare.prepared(JenaClimate, data_dir, manual_dir)
    record = prepare.records(builder, "train")[0]
    return jena.Climate(
        values=record["values"],
        times=record["times"].astype("datetime64[s]"),
        columns=tuple(record["columns"].decode().split("\n")),
        report=record["report"].decode(),
        source=Path(builder.data_dir),
    )
