"""What all readers of text have in common: byte order marks."""

import codecs
import json
from functools import partial

import jax
import numpy as np
import pytest

from seqjax.data import embeddings, jena, nab, pairs, ptb, reviews, text, ucr, vectorize

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
        ValueError, match=r"\.(txt|csv|ts|json) is not UTF-8: it begins with the mark of UTF-(16|32), save"
    ):
        reader(tmp_path, partial(written, tmp_path, mark, encoding))
