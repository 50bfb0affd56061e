"""What all readers have in common: byte order marks, packed files, files that macOS adds."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from functools import partial

import jax
import numpy as np
import pytest

from seqjax.data import embeddings, jena, mnist, music, nab, pairs, ptb, reviews, spoken_digits, text, ucr, vectorize

WORDS = vectorize.fit(["the cat sat"])


def _text(folder, write):
    write("a.txt", "to be")
    return text.read(folder / "a.txt")


def _texts(folder, write):
    write("a.txt", "to be\n")
    write("b.txt", "or not\n")
    return text.read(folder)


def _ptb(folder, write):
    for part in ("train", "valid", "test"):
        write(f"ptb.{part}.txt", " the cat \n")
    return ptb.load(folder)


def _pairs(folder, write):
    write("fra.txt", "Go.\tVa !\n")
    return pairs.load(folder / "fra.txt")


def _reviews(folder, write):
    for part in ("train", "test"):
        write(f"{part}/neg/0_2.txt", "bad")
        write(f"{part}/urls_neg.txt", "film a\n")
    return {part: (found.texts, found.films) for part, found in reviews.load(folder).items()}


def _embeddings(folder, write):
    write("glove.txt", "the 1 2\ncat 3 4\n")
    return embeddings.load(folder / "glove.txt", WORDS)


def _word2vec(folder, write):
    write("vectors.txt", "2 2\nthe 1 2\ncat 3 4\n")
    return embeddings.load(folder / "vectors.txt", WORDS)


def _columns(folder, write):
    for part in ("TRAIN", "TEST"):
        write(f"ECG_{part}.txt", "1 0.5 0.25\n")
    return ucr.load(folder, "ECG")


def _ts(folder, write):
    for part in ("TRAIN", "TEST"):
        write(f"ECG_{part}.ts", "@classLabel true a\n@data\n1,2:a\n")
    return ucr.load(folder, "ECG")


def _nab(folder, write):
    write("data/a/b.csv", "timestamp,value\n2014-01-01 00:00:00,1\n")
    write("labels/combined_windows.json", json.dumps({"a/b.csv": []}))
    return nab.load(folder)


def _jena(folder, write):
    record = jena.synthetic_climate(jax.random.key(0), 3)
    rows = [time.astype(object).strftime("%d.%m.%Y %H:%M:%S,1000") for time in record.times]
    write("jena_climate_2009_2016.csv", "\n".join(["Date Time,p (mbar)", *rows]))
    found = jena.load(folder)
    return found.times, found.values, found.columns


def _vectorizer(folder, write):
    WORDS.save(folder / "words.json")
    write("words.json", (folder / "words.json").read_text(encoding="utf-8"))
    return vectorize.load(folder / "words.json")


READERS = [
    _text, _texts, _ptb, _pairs, _reviews, _embeddings, _word2vec, _columns, _ts, _nab, _jena, _vectorizer,
]  # fmt: skip


def written(folder, mark, encoding, name, content):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(mark + content.encode(encoding))


@pytest.mark.parametrize("reader", READERS)
def test_a_byte_order_mark_is_no_part_of_what_a_file_says(reader, tmp_path):
    plain, marked = (
        reader(tmp_path / name, partial(written, tmp_path / name, mark, "utf-8"))
        for name, mark in (("plain", b""), ("marked", codecs.BOM_UTF8))
        if (tmp_path / name).mkdir() is None
    )
    assert jax.tree.structure(plain) == jax.tree.structure(marked)
    jax.tree.map(np.testing.assert_array_equal, plain, marked)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("reader", [reader for reader in READERS if reader is not _vectorizer])
def test_a_file_with_the_mark_of_another_encoding_is_named(reader, encoding, tmp_path):
    mark = "\ufeff".encode(encoding)
    with pytest.raises(
        ValueError, match=r"\.(txt|csv|ts|json) is not UTF-8 but UTF-(16|32), by its byte order mark: save"
    ):
        reader(tmp_path, partial(written, tmp_path, mark, encoding))


# Packed files


def _tarred(contents, mode="w"):
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode=mode) as archive:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return file.getvalue()


def _zipped(contents):
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
        return file.getvalue()


STREAMS = {".gz": partial(gzip.compress, mtime=0), ".bz2": bz2.compress, ".xz": lzma.compress}
ARCHIVES = {
    ".zip": _zipped,
    ".tar": _tarred,
    ".tar.gz": partial(_tarred, mode="w:gz"),
    ".tar.bz2": partial(_tarred, mode="w:bz2"),
    ".tar.xz": partial(_tarred, mode="w:xz"),
}
OF_MACOS = {"__MACOSX/data/._a": b"\0\5\x16\7", "._a": b"\0\5\x16\7", ".DS_Store": b"\0\0\0\1Bud1"}


def _packed(name, content, packing):
    """A file of its name packed by itself; an archive holds what macOS adds, too."""
    if packing in STREAMS:
        return STREAMS[packing](content)
    own = name.rpartition("/")[2]
    return ARCHIVES[packing]({f"__MACOSX/._{own}": b"\0\5\x16\7", own: content})


def _music(folder, write):
    parts = {"train": [[[60], [64]]], "valid": [[[60], []]], "test": [[[], [21]]]}
    write("jsb-chorales-16th.json", json.dumps(parts))
    return music.load(folder, "jsb_16th")


def _mnist(folder, write):
    for images, labels in mnist.FILES.values():
        write(images, "\0\0\x08\3" + "\0\0\0\1" + "\0\0\0\x1c" * 2 + "\1" * 784)
        write(labels, "\0\0\x08\1" + "\0\0\0\1" + "\5")
    return mnist.load(folder)


def _one_series(folder, write):
    write("a.csv", "timestamp,value\n2014-01-01 00:00:00,1\n")
    return nab.read_csv(folder / "a.csv")


def _pairs_of_a_folder(folder, write):
    write("fra.txt", "Go.\tVa !\n")
    return pairs.load(folder)


def _same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


def _both(reader, tmp_path, write):
    for name in ("plain", "packed"):
        (tmp_path / name).mkdir()
    return reader(tmp_path / "plain", partial(written, tmp_path / "plain", b"", "utf-8")), reader(
        tmp_path / "packed", partial(write, tmp_path / "packed")
    )


OF_MEMBERS = (_reviews, _nab)  # in which a file is packed by gzip, bzip2 or xz; an archive is of all of them


@pytest.mark.parametrize("packing", [*STREAMS, *ARCHIVES])
@pytest.mark.parametrize("reader", [*READERS, _music, _mnist, _one_series])
def test_a_packed_file_is_known_by_its_content(reader, packing, tmp_path):
    if reader in OF_MEMBERS and packing not in STREAMS:
        packing = ".gz"

    def write(folder, name, content):
        written(folder, b"", "latin-1", name, _packed(name, content.encode(), packing).decode("latin-1"))

    _same(*_both(reader, tmp_path, write))


@pytest.mark.parametrize("packing", [*STREAMS, *ARCHIVES])
@pytest.mark.parametrize(
    "reader", [_texts, _ptb, _reviews, _columns, _ts, _nab, _jena, _music, _mnist, _pairs_of_a_folder]
)
def test_a_packed_file_is_found_by_its_name(reader, packing, tmp_path):
    if reader in OF_MEMBERS and packing not in STREAMS:
        packing = ".bz2"

    def write(folder, name, content):
        written(folder, b"", "latin-1", name + packing, _packed(name, content.encode(), packing).decode("latin-1"))

    _same(*_both(reader, tmp_path, write))


def _wav(content=b"\1\0\2\0"):
    form = bytes.fromhex("666d742010000000010001 00401f0000803e000002001000")
    chunks = b"WAVE" + form + b"data" + len(content).to_bytes(4, "little") + content
    return b"RIFF" + len(chunks).to_bytes(4, "little") + chunks


def _files_of(reader):
    """The files that a reader of archives reads, and the name of the archive."""
    found = {}
    if reader is spoken_digits.load:
        return {f"recordings/{i}_ada_{i}.wav": _wav() for i in range(2)}, "fsdd"
    if reader is ptb.load:
        return {f"simple-examples/data/ptb.{part}.txt": b" a b \n" for part in ("train", "valid", "test")}, (
            "simple-examples"
        )
    if reader is reviews.load:
        for part in ("train", "test"):
            found[f"aclImdb/{part}/neg/0_2.txt"] = b"bad"
        return found, "aclImdb_v1"
    if reader is nab.load:
        labels = json.dumps({"a/b.csv": []}).encode()
        return {
            "NAB/data/a/b.csv": b"timestamp,value\n2014-01-01 00:00:00,1\n",
            "NAB/labels/combined_windows.json": labels,
        }, "NAB"
    return {f"ECG/ECG_{part}.txt": b"1 0.5\n" for part in ("TRAIN", "TEST")}, "ECG"


def ecg(path):
    return ucr.load(path, "ECG")


@pytest.mark.parametrize("packing", ARCHIVES)
@pytest.mark.parametrize("reader", [spoken_digits.load, ptb.load, reviews.load, nab.load, ecg])
def test_an_archive_of_any_kind_is_read_with_files_of_macos_in_it(reader, packing, tmp_path):
    contents, name = _files_of(reader)
    for file, content in contents.items():
        written(tmp_path / "plain", b"", "latin-1", file, content.decode("latin-1"))
    expected = reader(next((tmp_path / "plain").iterdir()))
    noise = OF_MACOS.copy()
    for file in contents:
        folder, _, own = file.rpartition("/")
        noise |= {f"__MACOSX/{folder}/._{own}": b"\0\5\x16\7", f"{folder}/._{own}": b"\0\5\x16\7"}
        written(tmp_path / "plain", b"\0\5\x16\7", "utf-8", f"{folder}/._{own}", "")
    _same(reader(next(folder for folder in (tmp_path / "plain").iterdir() if folder.name[0] != ".")), expected)
    (tmp_path / "packed").mkdir()
    archive = tmp_path / "packed" / f"{name}{packing}"
    archive.write_bytes(ARCHIVES[packing](noise | contents))
    (tmp_path / "packed" / f"._{name}{packing}").write_bytes(b"\0\5\x16\7")
    _same(reader(archive), expected)
    _same(reader(archive.parent), expected)


@pytest.mark.parametrize("packing", [".zip", ".tar"])
@pytest.mark.parametrize("reader", [spoken_digits.load, ptb.load, reviews.load, nab.load, ecg])
def test_an_archive_that_is_cut_off_is_named_by_every_reader(reader, packing, tmp_path):
    contents, name = _files_of(reader)
    archive = tmp_path / f"{name}{packing}"
    whole = ARCHIVES[packing](contents)
    ends = range(0, len(whole), 512) if packing == ".tar" else range(0, len(whole), 29)
    for end in list(ends)[:-2]:
        if len(whole[end:].strip(b"\0")):
            archive.write_bytes(whole[:end])
            with pytest.raises(ValueError, match=rf"{name}{packing}: damaged( or not an archive)?: "):
                reader(archive)


@pytest.mark.parametrize("reader", [_text, _pairs, _embeddings, _nab, _jena, _music, _mnist, _ptb])
@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zip", ".tar.gz"])
def test_a_packed_file_that_is_cut_off_is_named_by_every_reader(reader, packing, tmp_path):
    def write(folder, name, content):
        whole = _packed(name, content.encode(), ".gz" if reader is _nab and packing in ARCHIVES else packing)
        written(folder, b"", "latin-1", name, whole[: len(whole) - 9].decode("latin-1"))

    with pytest.raises(ValueError, match=r"(damaged|line 0|line 1)"):
        reader(tmp_path, partial(write, tmp_path))


@pytest.mark.parametrize(
    ("head", "kind"),
    [(b"\x28\xb5\x2f\xfd", "Zstandard"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07\1\0", "RAR")],
)
@pytest.mark.parametrize("reader", [_text, _pairs, _reviews, _embeddings, _columns, _nab, _jena, _music, _mnist, _ptb])
def test_a_file_packed_otherwise_is_named_with_what_packed_it(reader, head, kind, tmp_path):
    def write(folder, name, content):
        written(folder, b"", "latin-1", name, (head + bytes(20)).decode("latin-1"))

    with pytest.raises(ValueError, match=rf"{kind} is not supported: decompress the file"):
        reader(tmp_path, partial(write, tmp_path))
