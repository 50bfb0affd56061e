"""Files of data sets: found, read from folders and archives, and refused by name when they are damaged."""

import bz2
import gzip
import io
import lzma
import os
import re
import struct
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
    cuts = [whole[:-cut] for cut in (1, 8, 20, 40, 60)]
    for damaged in (*cuts, whole[:60] + bytes([whole[60] ^ 255]) + whole[61:], b"", b"no archive"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"archive: damaged( or not an archive)?: \w+: "):
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


def every(path):
    return list(files.members(path, lambda name: True))


def with_header(content, offset_in_local, value):
    """A zip archive whose headers, of a file and of the directory, hold another 16 bits there."""
    changed = bytearray(content)
    for mark, offset in ((b"PK\3\4", offset_in_local), (b"PK\1\2", offset_in_local + 2)):
        for found in re.finditer(re.escape(mark), content):
            struct.pack_into("<H", changed, found.start() + offset, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (6, 1, "top/a.txt is encrypted: extract it with its password"),
        (6, 0x41, "top/a.txt is encrypted: extract it with its password"),
        (8, 9, "top/a.txt uses Deflate64, which is not supported: extract it, or compress it again"),
        (8, 93, "top/a.txt uses method 93 of zip, which is not supported: extract it, or compress it again"),
        (4, 99, "zip file version 9.9"),
    ],
)
def test_zip_files_that_python_does_not_read_are_named(offset, value, message, tmp_path):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("top/a.txt", b"first")
    path.write_bytes(with_header(path.read_bytes(), offset, value))
    for read in (files.read, every):
        with pytest.raises(ValueError, match=rf"bad.zip: .*{message}"):
            read(path)
    if offset != 4:  # what nobody wants is not looked at
        assert list(files.members(path, lambda name: name.endswith(".csv"))) == []


def add(archive, name, content=b"x", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = (len(content) if kind == tarfile.REGTYPE else 0), kind, link
    archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_member_that_is_no_file_is_refused(kind, tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "b.txt")
        add(archive, "a.txt", kind=kind, link="b.txt")
    with pytest.raises(ValueError, match=r"a.tar: a.txt is a link or a device: archive the file itself"):
        every(path)
    assert list(files.members(path, lambda name: name == "b.txt")) == [("b.txt", b"x")]


@pytest.mark.parametrize("second", ["a.txt", "./a.txt", "a.txt.gz"])
def test_a_file_that_stands_there_twice_is_refused(second, tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "a.txt")
        add(archive, second, b"y")
    with pytest.raises(ValueError, match=r"a.tar: a.txt occurs twice, as a.txt and as a.txt"):
        every(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "x")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.txt", "y")
    for read in (every, files.read):
        with pytest.raises(ValueError, match=r"a.zip: (a.txt occurs twice|expected one file in it, found)"):
            read(tmp_path / "a.zip")


def test_a_tar_archive_is_whole_or_refused(tmp_path):
    path = tar(tmp_path / "a.tar", "w")
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in range(0, end, 128):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a.tar: damaged( or not an archive)?: ReadError: "):
            every(path)
    header = whole.index(b"top/b/d.csv")
    path.write_bytes(whole[:header] + b"u" + whole[header + 1 :])
    with pytest.raises(ValueError, match=r"ReadError: bad checksum at byte 2048"):
        every(path)
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match=r"ReadError: data after its end: concatenated archives\?"):
        every(path)
    path.write_bytes(whole[: end + 512])  # some programs write one block of zeros
    assert dict(every(path)) == CONTENTS


def test_names_of_windows_have_slashes(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top\\b\\c.txt", b"second")
    assert every(tmp_path / "a.zip") == [("top/b/c.txt", b"second")]


def test_links_in_a_folder(tmp_path):
    top = folder(tmp_path / "real") / "top"
    seen = tmp_path / "seen"
    seen.mkdir()
    (seen / "linked").symlink_to(top, target_is_directory=True)
    (seen / "e.txt").symlink_to(top / "a.txt")
    assert dict(every(seen)) == {"e.txt": b"first"} | {
        name.replace("top/", "linked/"): content for name, content in CONTENTS.items()
    }
    (seen / "f.txt").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"f.txt: a broken link, or not a file"):
        every(seen)
    assert len(list(files.members(seen, lambda name: name != "f.txt"))) == 4
    (seen / "f.txt").unlink()
    os.mkfifo(seen / "f.txt")
    with pytest.raises(ValueError, match=r"f.txt: a broken link, or not a file"):
        every(seen)
    (seen / "f.txt").unlink()
    (seen / "again").symlink_to(seen, target_is_directory=True)
    with pytest.raises(ValueError, match="again: a link to a folder that contains it"):
        every(seen)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files_are_read_to_their_end(pack, tmp_path):
    path = tmp_path / "file"
    long = os.urandom(100_000) + bytes(10_000_000)
    path.write_bytes(pack(long))
    assert files.read(path) == long
    path.write_bytes(pack(b"one\n") + pack(b"") + pack(b"two\n"))  # streams one after another are one file
    assert files.read(path) == b"one\ntwo\n"
    with files.stream(path) as lines:
        assert list(lines) == [b"one\n", b"two\n"]
    whole = pack(b"one\n")
    damaged = [whole[:-cut] for cut in range(1, len(whole) - 12)]
    for content in (*damaged, whole + b"junk", whole + pack(b"two\n")[:-3], whole[:-6] + b"\1\2\3\4\5\6"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"file: damaged: \w+: "):
            files.read(path)
    if pack is lzma.compress:
        path.write_bytes(whole + bytes(8) + whole)
        assert files.read(path) == b"one\none\n"


def test_several_data_sets_in_a_folder_are_refused(tmp_path):
    for name in ("deu-eng.zip", "fra-eng.zip", "._fra-eng.zip"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"expected one data set, found .*deu-eng.zip, .*fra-eng.zip: pass one of them"
    ):
        files.find(tmp_path, ("*-eng.zip",))
    (tmp_path / "deu-eng.zip").unlink()
    assert files.find(tmp_path, ("*-eng.zip",)) == tmp_path / "fra-eng.zip"
    (tmp_path / "fra-eng.zip").rename(tmp_path / "fra-eng.tar.xz")
    assert files.find(tmp_path, ("*-eng.zip",)) == tmp_path / "fra-eng.tar.xz"


def test_an_archive_of_several_files_is_no_file(tmp_path):
    path = tar(tmp_path / "a.tgz")
    with pytest.raises(
        ValueError, match=r"a.tgz: expected one file in it, found \['top/a.txt', 'top/b/c.txt', 'top/b/d"
    ):
        files.read(path)
    assert files.read(path, lambda name: name.endswith(".csv")) == b"third"
    with pytest.raises(ValueError, match=r"a.tgz: expected one npz in it, found \['top/a.txt', .*csv'\]"):
        files.read(path, lambda name: name.endswith(".npz"), "npz")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, lambda content: b"PK\3\4" + content])
def test_a_packed_file_in_the_place_of_a_text_is_named_as_such(pack):
    with pytest.raises(ValueError, match=r"a.txt is not UTF-8 but \w+, expected text: decompress it"):
        files.decode(pack(b"text"), "a.txt")
    assert files.decode(b"BZh text that begins like bzip2", "a.txt").startswith("BZh")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "a": 2}', "duplicate name: 'a'"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"[" * 100_000, "maximum recursion depth"),
        (b"[1", "Expecting ',' delimiter"),
        (b'"\xff"', "is not UTF-8"),
    ],
)
def test_json_is_read_strictly(content, message):
    with pytest.raises(ValueError, match=rf"a.json: not JSON: .*{message}"):
        files.parse_json(content, "a.json")
