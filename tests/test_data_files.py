"""Files of data sets: found, read from folders and archives, and refused by name when they are damaged."""

import gzip
import io
import tarfile
import zipfile

import pytest

from seqjax.data import files

CONTENTS = {"top/a.txt": b"first", "top/b/c.txt": b"second", "top/b/d.csv": b"third"}


def folder(path):
    for name, content in CONTENTS.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def tar(path, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in CONTENTS.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def packed(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("top")
        for name, content in CONTENTS.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("make", [folder, tar, lambda path: tar(path, "w"), packed], ids=["folder", "gz", "tar", "zip"])
def test_members_of_a_folder_or_an_archive(make, tmp_path):
    place = make(tmp_path / "place")
    assert dict(files.members(place, lambda name: True)) == CONTENTS
    assert list(files.members(place, lambda name: name.endswith(".csv"))) == [("top/b/d.csv", b"third")]


@pytest.mark.parametrize("make", [tar, packed])
def test_a_damaged_archive_is_named(make, tmp_path):
    path = make(tmp_path / "archive")
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole[:60] + bytes([whole[60] ^ 255]) + whole[61:], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"archive: damaged or no archive: \w+: "):
            list(files.members(path, lambda name: True))


def test_a_gzip_file_is_known_by_its_content(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"plain")
    assert files.read(file) == b"plain"
    file.write_bytes(gzip.compress(b"packed"))
    assert files.read(file) == b"packed"
    file.write_bytes(gzip.compress(b"packed")[:-3])
    with pytest.raises(ValueError, match="file: damaged: EOFError"):
        files.read(file)


def test_find(tmp_path):
    top = folder(tmp_path) / "top"
    assert files.find(top / "a.txt", ("nothing",)) == top / "a.txt"
    assert files.find(top, ("*.csv", "a.*")) == top / "a.txt"
    assert files.find(top, ("*.csv", "c.txt"), ("x", "b")) == top / "b" / "d.csv"
    with pytest.raises(FileNotFoundError, match=r"top: no \*.npz or x in it, found a.txt, b$"):
        files.find(top, ("*.npz", "x"))
    with pytest.raises(FileNotFoundError, match=r"none: no such file or folder, expected x$"):
        files.find(tmp_path / "none", ("x",))


def test_bytes_that_are_no_text_are_refused_with_their_place():
    assert files.decode("é".encode(), "here") == "é"
    with pytest.raises(ValueError, match="here is not UTF-8: invalid start byte at offset 1"):
        files.decode(b"a\xff", "here")
