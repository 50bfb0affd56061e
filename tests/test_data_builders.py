"""TFDS builders: what is prepared is what the plain loaders read, and TensorFlow stays out."""

import hashlib
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_data_reviews import archive

from seqjax.data import builders, jena, reviews, text


@pytest.fixture
def climate_dir(tmp_path):
    """A folder with a tiny csv of the official form."""
    record = jena.synthetic_climate(jax.random.key(0), 30, minutes=10)
    rows = [
        ",".join([time.astype(object).strftime("%d.%m.%Y %H:%M:%S"), *(f"{v:.2f}" for v in row)])
        for time, row in zip(record.times, record.values, strict=True)
    ]
    folder = tmp_path / "manual"
    folder.mkdir()
    header = ",".join(f'"{name}"' for name in ("Date Time", *record.columns))
    (folder / "jena_climate_2009_2016.csv").write_text("\n".join([header, *rows, rows[3]]) + "\n")
    return folder


@pytest.fixture
def text_dir(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    (folder / "input.txt").write_text("First Citizen:\nBefore we proceed any further, hear me speak. é\n" * 5)
    return folder


def no_download(*_):
    raise AssertionError("must not download")


def test_jena_climate_is_prepared_and_read_back_exactly(climate_dir, tmp_path, monkeypatch):
    file = climate_dir / "jena_climate_2009_2016.csv"
    monkeypatch.setattr(builders.JenaClimate, "blob", jena.blob_id(file.read_bytes()))
    monkeypatch.setattr(tfds.download.DownloadManager, "download", no_download)
    found = builders.jena_climate(tmp_path / "data", climate_dir)
    expected = jena.load(file)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.times, expected.times)
    assert found.values.dtype == np.float32
    assert found.times.dtype == expected.times.dtype
    assert found.columns == expected.columns
    assert found.report == expected.report
    assert "1 repeated, 1 unsorted" in found.report
    assert "tensorflow" not in sys.modules
    file.unlink()  # prepared once: the source is not needed again
    np.testing.assert_array_equal(builders.jena_climate(tmp_path / "data").values, expected.values)


def test_jena_climate_downloads_the_official_zip_when_it_is_not_in_manual_dir(climate_dir, tmp_path, monkeypatch):
    file = climate_dir / "jena_climate_2009_2016.csv"
    archive = tmp_path / "download_without_a_suffix"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(file, file.name)
    monkeypatch.setattr(builders.JenaClimate, "blob", jena.blob_id(file.read_bytes()))
    asked = []
    monkeypatch.setattr(tfds.download.DownloadManager, "download", lambda self, url: asked.append(url) or archive)
    found = builders.jena_climate(tmp_path / "data")
    assert asked == ["https://storage.googleapis.com/tensorflow/tf-keras-datasets/jena_climate_2009_2016.csv.zip"]
    np.testing.assert_array_equal(found.values, jena.load(file).values)


def test_tiny_shakespeare_is_prepared_and_read_back_exactly(text_dir, tmp_path, monkeypatch):
    content = (text_dir / "input.txt").read_bytes()
    monkeypatch.setattr(builders.TinyShakespeare, "sha256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(tfds.download.DownloadManager, "download", no_download)
    assert builders.tiny_shakespeare(tmp_path / "data", text_dir) == text.read(text_dir)
    builder = builders.TinyShakespeare(data_dir=tmp_path / "data", file_format="array_record")
    train = builder.as_data_source(split="train")[0]["text"].decode()
    assert train == text.split(text.read(text_dir), (0.9, 0.05, 0.05))[0]


def test_imdb_reviews_are_prepared_and_read_back_exactly(tmp_path, monkeypatch):
    (tmp_path / "manual").mkdir()
    file = archive(tmp_path / "manual" / "aclImdb_v1.tar.gz")
    monkeypatch.setattr(builders.ImdbReviews, "md5", hashlib.md5(file.read_bytes()).hexdigest())
    monkeypatch.setattr(tfds.download.DownloadManager, "download", no_download)
    parts, expected = builders.imdb_reviews(tmp_path / "data", tmp_path / "manual"), reviews.load(file)
    for name, part in parts.items():
        assert part.texts == expected[name].texts
        assert part.films == expected[name].films
        np.testing.assert_array_equal((part.labels, part.stars), (expected[name].labels, expected[name].stars))
        assert part.labels.dtype == part.stars.dtype == np.int32
    file.unlink()
    assert builders.imdb_reviews(tmp_path / "data")["test"].texts == expected["test"].texts


def test_wrong_checksums_are_refused_and_nothing_is_prepared(climate_dir, tmp_path):
    (climate_dir / "input.txt").write_text("not Shakespeare")
    with pytest.raises(ValueError, match=rf"2016.csv: git blob id [0-9a-f]{{40}}, expected {jena.OFFICIAL_BLOB}"):
        builders.jena_climate(tmp_path / "data", climate_dir)
    with pytest.raises(ValueError, match=r"input.txt: sha256 [0-9a-f]{64}, expected 86c4e6aa"):
        builders.tiny_shakespeare(tmp_path / "data", climate_dir)
    (climate_dir / "aclImdb_v1.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"aclImdb_v1.tar.gz: md5 [0-9a-f]{32}, expected 7c2ac02c"):
        builders.imdb_reviews(tmp_path / "data", climate_dir)
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_builders_say_where_the_data_is_from(tmp_path):
    for builder_class, licence in [
        (builders.JenaClimate, "CC BY 4.0"),
        (builders.TinyShakespeare, "public domain"),
        (builders.ImdbReviews, "For research"),
    ]:
        info = builder_class(data_dir=tmp_path, file_format="array_record").info
        assert licence in info.redistribution_info.license
        assert info.citation.startswith("@")


def test_tensorflow_is_not_imported():
    code = "import sys, seqjax.data.builders; sys.exit('tensorflow' in sys.modules)"  # preparing: asserted above
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_data_package_does_not_import_the_slow_builders():
    code = "import sys, seqjax.data; sys.exit('tensorflow_datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_tiny_shakespeare_passes_its_checksum(data_dir, tmp_path):
    folder = data_dir / "tinyshakespeare"
    if not folder.is_dir():
        pytest.skip(f"no tiny Shakespeare at {folder}")
    assert builders.tiny_shakespeare(tmp_path, folder) == text.read(folder)
