"""The common part of the builders: find or download the file, verify it, prepare once, read back."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

__all__ = ["DataDir", "check", "fetch", "prepared", "records"]

DataDir = str | os.PathLike[str] | None
"""A directory, or None for the default."""


def fetch(dl_manager: tfds.download.DownloadManager, url: str, name: str) -> Path:
    """The file of this name (or its zip) in manual_dir, or else a download.

    `dl_manager.download` only looks in manual_dir for files whose checksum is registered.
    """
    try:
        manual_dir = Path(dl_manager.manual_dir)
    except AssertionError:  # how tfds reports a missing or empty folder
        return Path(dl_manager.download(url))
    for candidate in (name, f"{name}.zip"):
        if (manual_dir / candidate).is_file():
            return manual_dir / candidate
    return Path(dl_manager.download(url))


def check(file: Path, algorithm: str, expected: str) -> None:
    """Verifies a file by its hash, before anything is written.

    Raises:
      ValueError: another hash (names the file and both hashes).
    """
    with file.open("rb") as content:
        found = hashlib.file_digest(content, algorithm).hexdigest()
    if found != expected:
        raise ValueError(f"{file}: {algorithm} {found}, expected {expected}: another file, or damaged")


def prepared(
    builder_class: Callable[..., tfds.core.GeneratorBasedBuilder], data_dir: DataDir, manual_dir: DataDir
) -> tfds.core.GeneratorBasedBuilder:
    """The builder, with its data set prepared under `data_dir` if it is not there yet."""
    builder = builder_class(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def records(builder: tfds.core.GeneratorBasedBuilder, split: str) -> Sequence[dict[str, Any]]:
    """All records of a split, in order."""
    source: Any = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]  (hidden by a decorator)
    return [source[i] for i in range(len(source))]
