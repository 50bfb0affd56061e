"""Movie reviews and word vectors from files: what is read, how it is split, and what is said of damaged ones."""

import gzip
import io
import tarfile

import numpy as np
import pytest

from seqjax.data import embeddings, reviews, vectorize

FILES = {
    "train/neg/0_2.txt": "bad é",
    "train/neg/1_4.txt": "poor",
    "train/neg/10_1.txt": "awful",
    "train/pos/0_10.txt": "good",
    "train/pos/1_7.txt": "fine",
    "train/urls_neg.txt": "film a\nfilm b\n",
    "train/urls_pos.txt": "film a\nfilm c\n",
    "train/unsup/0_0.txt": "no label",
    "test/neg/0_3.txt": "dull",
    "test/pos/0_9.txt": "bright",
    "README": "not a review",
}


def archive(path, files=FILES):
    with tarfile.open(path, "w:gz") as packed:
        for name, text in files.items():
            content = text if isinstance(text, bytes) else text.encode()
            member = tarfile.TarInfo(f"aclImdb/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


def unpacked(folder):
    for name, text in FILES.items():
        file = folder / "aclImdb" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["archive", "folder of the archive", "folder", "folder around it"])
def test_reviews_are_read_in_the_order_of_their_numbers(tmp_path, kind):
    file = archive(tmp_path / "aclImdb_v1.tar.gz")
    (tmp_path / "data").mkdir()
    unpacked(tmp_path / "data")
    path = {
        "archive": file,
        "folder of the archive": tmp_path,
        "folder": tmp_path / "data" / "aclImdb",
        "folder around it": tmp_path / "data",
    }[kind]
    parts = reviews.load(path)
    train = parts["train"]
    assert train.texts == ("bad é", "poor", "awful", "good", "fine")
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert train.stars.tolist() == [2, 4, 1, 10, 7]
    assert train.films == ("film a", "film b", "", "film a", "film c")
    assert parts["test"].texts == ("dull", "bright")
    assert train.labels.dtype == np.int32


def test_a_split_keeps_films_together():
    films = tuple(f"film {i // 3}" for i in range(300)) + ("",) * 100
    every = reviews.Reviews(tuple(map(str, range(400))), np.arange(400), np.ones(400, np.int32), films)
    train, validation = reviews.split(every, 0.25, seed=1)
    assert sorted([*train.labels, *validation.labels]) == list(range(400))
    assert not set(train.films) & set(validation.films) - {""}
    assert 95 <= len(validation.texts) <= 105
    assert "" in validation.films
    assert train.texts == tuple(str(i) for i in train.labels)
    again = reviews.split(every, 0.25, seed=1)[1]
    assert again.texts == validation.texts
    assert reviews.split(every, 0.25, seed=2)[1].texts != validation.texts
    with pytest.raises(ValueError, match="fraction must be between 0 and 1, got 1"):
        reviews.split(every, 1)
    with pytest.raises(ValueError, match=r"1 reviews of 1 films are too few to hold out 0.5 of them"):
        reviews.split(every.take(np.arange(1)), 0.5)


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone: no such file or folder, expected aclImdb\*.tar.gz or train"):
        reviews.load(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"no aclImdb\*.tar.gz or train in it, found nothing"):
        reviews.load(tmp_path)
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(FileNotFoundError, match=r"found notes.txt"):
        reviews.load(tmp_path)
    with pytest.raises(ValueError, match=r"notes.txt: damaged or not an archive: ReadError"):
        reviews.load(tmp_path / "notes.txt")
    whole = archive(tmp_path / "whole.tar.gz", {**FILES, "train/pos/2_8.txt": "x" * 100_000}).read_bytes()
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole[: len(whole) - 60])
    with pytest.raises(ValueError, match=r"cut.tar.gz: damaged"):
        reviews.load(cut)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    cut.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match=r"cut.tar.gz"):
        reviews.load(cut)
    latin = archive(tmp_path / "latin.tar.gz", {**FILES, "train/neg/2_2.txt": "schön".encode("latin-1")})
    with pytest.raises(ValueError, match=r"aclImdb/train/neg/2_2.txt is not UTF-8: .* at offset 3"):
        reviews.load(latin)
    half = archive(tmp_path / "half.tar.gz", {k: v for k, v in FILES.items() if k.startswith("train")})
    with pytest.raises(ValueError, match=r"half.tar.gz: no reviews test/neg/NUMBER_STARS.txt"):
        reviews.load(half)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train/neg/2_9.txt": ""}, "train/neg/2_9.txt: 9 stars, expected 7 to 10 in pos and 1 to 4 in neg"),
        ({"train/pos/2_0.txt": ""}, "train/pos/2_0.txt: 0 stars, expected"),
        ({"train/neg/\u0663_2.txt": ""}, "train/neg/\u0663_2.txt: expected reviews neg/NUMBER_STARS.txt"),
        ({"train/neg/2_2.text": ""}, "train/neg/2_2.text: expected reviews neg/NUMBER_STARS.txt"),
        ({"train/neg/2_2.TXT": ""}, "train/neg/2_2.TXT: expected reviews neg/NUMBER_STARS.txt"),
        ({"train/Pos/2_9.txt": ""}, "train/Pos/2_9.txt: expected reviews neg/NUMBER_STARS.txt"),
        ({"train/pos/more/2_9.txt": ""}, "train/pos/more/2_9.txt: expected reviews neg/NUMBER_STARS.txt"),
        ({"train/neg/01_3.txt": ""}, "train/neg/01_3.txt: there are two reviews train/neg/1"),
        ({"copy/train/urls_neg.txt": ""}, "copy/train/urls_neg.txt occurs twice"),
    ],
)
def test_reviews_that_contradict_each_other_are_refused(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        reviews.load(archive(tmp_path / "aclImdb.tar.gz", FILES | files))


def test_only_names_of_reviews_are_reviews_and_only_line_ends_end_addresses(tmp_path):
    urls = {
        "train/urls_neg.txt": "film\u2028a\x0c\r\nfilm b\r\n",
        "mytrain/neg/2_2.txt": "",
        "train/unsup/0_0.txt": "no label",
    }
    train = reviews.load(archive(tmp_path / "aclImdb.tar.gz", FILES | urls))["train"]
    assert len(train.texts) == 5
    assert train.films[:2] == ("film\u2028a\x0c", "film b")


def test_the_real_archive(data_dir):
    parts = reviews.load(data_dir / "imdb")
    assert {name: len(part.texts) for name, part in parts.items()} == {"train": 25_000, "test": 25_000}
    for part in parts.values():
        np.testing.assert_array_equal(part.labels, part.stars >= 7)
        assert part.labels.sum() == 12_500
        assert not ((part.stars == 5) | (part.stars == 6)).any()
    assert sum(len(text.encode()) for text in parts["train"].texts) == 33_132_823
    assert sum(len(text.encode()) for text in parts["test"].texts) == 32_350_685
    assert all(parts["train"].films)


WORDS = vectorize.fit(["the cat sat", "the dog"])  # the, sat, dog, cat: 2 to 5


def test_word_vectors_stand_at_the_indices_of_their_words(tmp_path):
    plain = tmp_path / "glove.txt"
    plain.write_text("the 1 2\n, 0 0\ncat -.5 1e-3\nthe 9 9\n", encoding="utf-8")
    packed = tmp_path / "glove.txt.gz"
    packed.write_bytes(gzip.compress(b"4 2\n" + plain.read_bytes()))
    for path in (plain, packed):
        vectors, known = embeddings.load(path, WORDS)
        np.testing.assert_allclose(vectors, [[0, 0], [0, 0], [1, 2], [0, 0], [0, 0], [-0.5, 0.001]])
        assert known.tolist() == [False, False, True, False, False, True]
        assert vectors.dtype == np.float32


def test_words_may_have_spaces_in_them_as_those_of_glove_840b_do(tmp_path):
    path, lines = (
        tmp_path / "glove.txt",
        [". . . .5 1", "the 1 2", "at name@domain.com -1 2", "2 3 4", "to\xa0do 5 6", "cat 7 8"],
    )
    for content in (lines, ["6 2", *lines], lines[::-1]):
        path.write_text("\n".join(content), encoding="utf-8")
        vectors, known = embeddings.load(path, WORDS)
        np.testing.assert_array_equal(vectors[[2, 5]], [[1, 2], [7, 8]])
        assert known.sum() == 2
    spaced = vectorize.fit([". . ."], rules=vectorize.Rules(strip=False, ngrams=(3,)))
    np.testing.assert_array_equal(embeddings.load(path, spaced).vectors[2], [0.5, 1])


def test_a_word_is_found_however_its_accents_were_typed(tmp_path):
    (tmp_path / "glove.txt").write_text("cafe\u0301 1 2\n", encoding="utf-8")
    for typed in ("café", "cafe\u0301"):
        assert embeddings.load(tmp_path / "glove.txt", vectorize.fit([typed])).vectors[2].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the 1 2\ncat 1\n", r"line 2: 1 numbers, expected 2"),
        (b"the 1 2\ncat 1 x\n", r"line 2: its numbers: 'x' is not a number"),
        (b"the 1 2\nwolf 1 x\n", r"line 2: its numbers: 'x' is not a number"),
        (b"the 1 2\ncat 1 2 3\n", r"line 2: 3 numbers, expected 2"),
        (b"the 1 2\ncat  1 2\n", r"line 2: an empty word, or two consecutive spaces"),
        (b"the 1 2\n 1 2\n", r"line 2: an empty word"),
        (b"the 1 2\ncat 1_0 2\n", r"line 2: its numbers: '1_0' is not a number"),
        (b"the 1 2\ncat 1 nan\n", r"line 2: its numbers: 'nan' is not a number"),
        (b"the 1 2\ncat 1 1e39\n", r"line 2: a number too large for float32"),
        (b"3 2\nthe 1 2\ncat 1 2\n", r"line 3: the end, after 2 words; its first line announces 3"),
        (b"3 3\nthe 1 2\n", r"line 2: 2 numbers, expected 3"),
        (b"\xff\xfet\x00h\x00", r"glove.txt is not UTF-8 but UTF-16, by its byte order mark"),
        (b"the\n", r"line 1: 0 numbers, expected at least one"),
        (b"the 1\n\xff 1\n", r"line \d: .*utf-8"),
        (b"wolf 1 2\n", r"none of its 1 lines has a word in the vocabulary"),
        (b"", r"none of its 0 lines"),
    ],
)
def test_a_file_without_word_vectors(tmp_path, content, message):
    path = tmp_path / "glove.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        embeddings.load(path, WORDS)


def test_a_damaged_or_missing_file_of_word_vectors(tmp_path):
    path = tmp_path / "glove.txt.gz"
    path.write_bytes(gzip.compress(b"the 1 2\n" * 1000)[:-20])
    with pytest.raises(ValueError, match=r"glove.txt.gz(, line \d+)?: "):
        embeddings.load(path, WORDS)
    path.write_bytes(b"the 1 2\n")  # a browser may unpack what it loads, and keep the name
    assert embeddings.load(path, WORDS).vectors[2].tolist() == [1, 2]
    with pytest.raises(FileNotFoundError):
        embeddings.load(tmp_path / "gone.txt", WORDS)
