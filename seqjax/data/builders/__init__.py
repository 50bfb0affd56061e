"""TensorFlow Datasets builders, without TensorFlow: prepared once as array_record, read back as the loaders do.

    climate = builders.jena_climate("~/tensorflow_datasets")
    text = builders.tiny_shakespeare("~/tensorflow_datasets", manual_dir="downloads")
    parts = builders.imdb_reviews("~/tensorflow_datasets")

`download_and_prepare` downloads the official file, or takes it from `manual_dir` when it is there, and checks it
before anything is written: the csv of Jena by its git blob id (nobody publishes a checksum of the zip), the others by
a hash.
"""

from seqjax.data.builders.jena import JenaClimate, jena_climate
from seqjax.data.builders.mnist import Mnist, mnist_digits
from seqjax.data.builders.reviews import ImdbReviews, imdb_reviews
from seqjax.data.builders.shakespeare import TinyShakespeare, tiny_shakespeare

__all__ = [
    "ImdbReviews",
    "JenaClimate",
    "Mnist",
    "TinyShakespeare",
    "imdb_reviews",
    "jena_climate",
    "mnist_digits",
    "tiny_shakespeare",
]
