"""TensorFlow Datasets builders, without TensorFlow: prepared once as array_record, returned in the form of the loaders.

    climate = builders.jena_climate("~/tensorflow_datasets")
    text = builders.tiny_shakespeare("~/tensorflow_datasets", manual_dir="downloads")
    parts = builders.imdb_reviews("~/tensorflow_datasets")

`download_and_prepare` downloads the official file, or takes it from `manual_dir` if it is there, and verifies it
before anything is written: the csv of Jena by its git blob id (no checksum of the zip is published), the others by a
hash.
"""

from seqjax.extras import needed

with needed("data", by=__name__):
    from seqjax.data.builders.jena import JenaClimate, jena_climate
    from seqjax.data.builders.mnist import Mnist, mnist_digits
    from seqjax.data.builders.music import PianoRolls, piano_rolls
    from seqjax.data.builders.nab import NumentaAnomalyBenchmark, numenta_anomaly_benchmark
    from seqjax.data.builders.pairs import FrenchEnglish, french_english
    from seqjax.data.builders.ptb import PennTreebank, penn_treebank
    from seqjax.data.builders.reviews import ImdbReviews, imdb_reviews
    from seqjax.data.builders.shakespeare import TinyShakespeare, tiny_shakespeare
    from seqjax.data.builders.spoken_digits import FreeSpokenDigits, free_spoken_digits
    from seqjax.data.builders.ucr import Ucr, ucr_series

__all__ = [
    "FreeSpokenDigits",
    "FrenchEnglish",
    "ImdbReviews",
    "JenaClimate",
    "Mnist",
    "NumentaAnomalyBenchmark",
    "PennTreebank",
    "PianoRolls",
    "TinyShakespeare",
    "Ucr",
    "free_spoken_digits",
    "french_english",
    "imdb_reviews",
    "jena_climate",
    "mnist_digits",
    "numenta_anomaly_benchmark",
    "penn_treebank",
    "piano_rolls",
    "tiny_shakespeare",
    "ucr_series",
]
