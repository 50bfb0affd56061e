"""Handwritten digits from idx files: what is read, what is generated, and what is said of damaged files."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds

from seqjax.data import builders, mnist

COUNTS = {"train": 5, "test": 3}


def idx(values, magic=None):
    """The bytes of an idx file, written down from its description."""
    head = magic if magic is not None else bytes([0, 0, 8, values.ndim])
    return head + struct.pack(f">{values.ndim}I", *values.shape) + values.astype(np.uint8).tobytes()


def pixels(count, offset=0):
    return (np.arange(count * 784, dtype=np.int64) * 7 + offset).reshape(count, 28, 28) % 256


def official(folder, compressed=True):
    """The four files under their official names; part p has labels 0, 1, 2, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, (images, labels) in mnist.FILES.items():
        count = COUNTS[part]
        for name, content in ((images, idx(pixels(count, len(part)))), (labels, idx(np.arange(count)))):
            file = folder / (f"{name}.gz" if compressed else name)
            file.write_bytes(gzip.compress(content) if compressed else content)
    return folder


@pytest.mark.parametrize("inner", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("compressed", [True, False])
def test_digits_are_read_as_written(tmp_path, inner, compressed):
    official(tmp_path / inner, compressed)
    parts = mnist.load(tmp_path)
    for name, digits in parts.items():
        np.testing.assert_array_equal(digits.images, pixels(COUNTS[name], len(name)))
        assert digits.labels.tolist() == list(range(COUNTS[name]))
        assert (digits.images.dtype, digits.labels.dtype) == (np.uint8, np.int32)


def test_the_last_digits_are_held_out(tmp_path):
    train, validation = mnist.split(mnist.load(official(tmp_path))["train"], 2)
    assert train.labels.tolist() == [0, 1, 2]
    assert validation.labels.tolist() == [3, 4]
    np.testing.assert_array_equal(validation.images, pixels(5, 5)[3:])
    for count in (0, 5):
        with pytest.raises(ValueError, match=rf"held_out must be in \[1, 4\], got {count}"):
            mnist.split(mnist.load(tmp_path)["train"], count)


IMAGES, LABELS = mnist.FILES["train"]
DAMAGED = {
    "truncated gzip": (
        IMAGES,
        gzip.compress(idx(pixels(5)))[:-12],
        r"idx3-ubyte.gz: damaged: EOFError: Compressed",
    ),
    "gzip with other bits": (
        IMAGES,
        gzip.compress(idx(pixels(5)))[:-8] + bytes(8),
        r"train-images-idx3-ubyte.gz: damaged: BadGzipFile: CRC check failed",
    ),
    "web page": (IMAGES, b"<html>", r"images-idx3-ubyte.gz: starts with 3c68746d, expected 00000803"),
    "nothing": (LABELS, b"", r"labels-idx1-ubyte.gz: damaged, or not compressed as its suffix .gz suggests"),
    "labels for images": (IMAGES, idx(np.arange(5)), r"starts with 00000801, expected 00000803"),
    "other type": (LABELS, idx(np.arange(5), bytes([0, 0, 13, 1])), r"starts with 00000d01, expected 00000801"),
    "a pixel too few": (IMAGES, idx(pixels(5))[:-1], r"3935 bytes, expected 3936 for \[5, 28, 28\]"),
    "a byte too many": (LABELS, idx(np.arange(5)) + b"0", r"14 bytes, expected 13 for \[5\]"),
    "small images": (IMAGES, idx(np.zeros((5, 28, 27))), "images of 28 x 27 pixels, expected 28 x 28"),
    "a label too few": (LABELS, idx(np.arange(4)), r"labels-idx1-ubyte.gz: 4 labels, expected 5, one per image"),
    "label 10": (LABELS, idx(np.array([0, 1, 10, 3, 4])), r"labels-idx1-ubyte.gz: label 10 at 2, expected 0 to 9"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(name, tmp_path):
    file, content, message = DAMAGED[name]
    (official(tmp_path) / f"{file}.gz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        mnist.load(tmp_path)


def test_a_part_without_images_is_named(tmp_path):
    official(tmp_path)
    for file, empty in ((IMAGES, pixels(0)), (LABELS, np.arange(0))):
        (tmp_path / f"{file}.gz").write_bytes(gzip.compress(idx(empty)))
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz: contains no images"):
        mnist.load(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such file or folder, expected train-images-idx3"):
        mnist.load(tmp_path / "nowhere")
    (official(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no t10k-labels-idx1-ubyte.gz or t10k-labels-idx1-ubyte in it"):
        mnist.load(tmp_path)


def test_generated_digits_look_like_what_they_are_labelled():
    digits = mnist.generated(400, seed=3)
    assert (digits.images.dtype, digits.images.shape, digits.labels.dtype) == (np.uint8, (400, 28, 28), np.int32)
    assert set(digits.labels) == set(range(10))
    np.testing.assert_array_equal(digits.images, mnist.generated(400, seed=3).images)
    assert (digits.images != mnist.generated(400, seed=4).images).any()
    # No two alike, and yet the nearest other image mostly shows the same digit.
    flat = digits.images.reshape(400, -1).astype(np.float64)
    squares = np.square(flat).sum(1)
    distance = squares[:, None] + squares - 2 * flat @ flat.T
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 1e4
    assert (digits.labels[distance.argmin(1)] == digits.labels).mean() > 0.7
    assert not mnist.generated(0).images.size


def test_the_builder_reads_back_what_the_loader_reads(tmp_path, monkeypatch):
    folder = official(tmp_path / "manual")
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in builders.Mnist.md5}
    monkeypatch.setattr(builders.Mnist, "md5", sums)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", lambda *_: pytest.fail("must not download"))
    parts, expected = builders.mnist_digits(tmp_path / "data", folder), mnist.load(folder)
    for name, digits in parts.items():
        np.testing.assert_array_equal(digits.images, expected[name].images)
        np.testing.assert_array_equal(digits.labels, expected[name].labels)
        assert (digits.images.dtype, digits.labels.dtype) == (np.uint8, np.int32)
    info = builders.Mnist(data_dir=tmp_path, file_format="array_record").info
    assert "CC BY-SA" in info.redistribution_info.license
    assert info.citation.startswith("@article{lecun1998")


def test_the_builder_downloads_what_manual_dir_does_not_have_and_checks_it(tmp_path, monkeypatch):
    folder = official(tmp_path / "elsewhere")
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download", lambda self, url: folder / url.removeprefix(builders.Mnist.url)
    )
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz: md5 [0-9a-f]{32}, expected f68b3c2d"):
        builders.mnist_digits(tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_the_official_digits(data_dir):
    folder = data_dir / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST at {folder}")
    for name, md5 in builders.Mnist.md5.items():
        assert hashlib.md5((folder / name).read_bytes()).hexdigest() == md5
    parts = mnist.load(data_dir)
    assert parts["train"].images.shape == (60_000, 28, 28)
    assert parts["test"].images.shape == (10_000, 28, 28)
    # The mean that everybody standardizes by.
    assert round(float(parts["train"].images.mean() / 255), 4) == 0.1307
    assert np.bincount(parts["test"].labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
