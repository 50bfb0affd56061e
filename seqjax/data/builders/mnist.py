"""MNIST, handwritten digits."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from seqjax.data import mnist
from seqjax.data.builders import prepare

__all__ = ["Mnist", "mnist_digits"]


class Mnist(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits: train, 60,000, and test, 10,000, in the order of the files."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Optional: the four files *-ubyte.gz in manual_dir are used instead of a download."
    url = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    md5: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of employees of the Census Bureau and of students, 28 x 28 pixels.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(mnist.SIZE, mnist.SIZE), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://yann.lecun.com/exdb/mnist/",
            license="CC BY-SA 3.0",
            citation="""@article{lecun1998gradient,
  title = {Gradient-based learning applied to document recognition},
  author = {LeCun, Yann and Bottou, L{\\'e}on and Bengio, Yoshua and Haffner, Patrick},
  journal = {Proceedings of the IEEE},
  volume = {86},
  number = {11},
  pages = {2278--2324},
  year = {1998},
}""",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        files = {name: prepare.fetch(dl_manager, self.url + name, name) for name in self.md5}
        for name, file in files.items():
            prepare.check(file, "md5", self.md5[name])
        return {
            part: self._generate_examples(mnist.load_files(*(files[f"{name}.gz"] for name in names)))
            for part, names in mnist.FILES.items()
        }

    def _generate_examples(self, digits: mnist.Digits) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(*digits, strict=True)):
            yield i, {"image": image, "label": int(label)}


def mnist_digits(data_dir: prepare.DataDir = None, manual_dir: prepare.DataDir = None) -> dict[str, mnist.Digits]:
    """What `mnist.load` returns, prepared under `data_dir` if it is not there yet; see `jena_climate`."""
    builder = prepare.prepared(Mnist, data_dir, manual_dir)
    parts = {}
    for name in mnist.FILES:
        rows = prepare.records(builder, name)
        labels = np.array([row["label"] for row in rows], np.int32)
        parts[name] = mnist.Digits(np.stack([row["image"] for row in rows]), labels)
    return parts
