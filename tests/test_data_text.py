"""Text: what is read is what was written, the vocabulary knows the training part only, lanes are contiguous."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqjax.data import text
from seqjax.data.text import Vocabulary

chunk = jax.jit(text.chunk, static_argnums=2)


def test_read_takes_a_file_or_the_files_of_a_directory_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("zwei\r\n", encoding="utf-8", newline="")
    (tmp_path / "a.txt").write_text("eins é\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("no")
    assert text.read(tmp_path / "b.txt") == "zwei\r\n"
    assert text.read(tmp_path) == "eins é\nzwei\r\n"


def test_read_names_the_file_and_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):
        text.read(tmp_path / "gone.txt")
    with pytest.raises(FileNotFoundError, match=r"no \*.txt file in this directory, found nothing"):
        text.read(tmp_path)
    (tmp_path / "notes.md").write_text("no")
    with pytest.raises(FileNotFoundError, match=r"no \*.txt file in this directory, found notes.md"):
        text.read(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"a.txt: the text is empty"):
        text.read(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes("schön".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.txt is not UTF-8: .* at offset 3, line 1"):
        text.read(tmp_path)


def test_texts_of_a_directory_that_are_left_out_or_read_twice_are_refused(tmp_path):
    for name, content in (("b.txt", b"b"), ("a.txt.gz", gzip.compress(b"a")), ("._b.txt", b"\0\5"), ("notes.md", b"n")):
        (tmp_path / name).write_bytes(content)
    assert text.read(tmp_path) == "ab"
    (tmp_path / "a.txt").write_bytes(b"a")
    with pytest.raises(ValueError, match=r"a.txt and a.txt.gz are the same text: keep one"):
        text.read(tmp_path)
    (tmp_path / "a.txt").rename(tmp_path / "c.TXT")
    with pytest.raises(ValueError, match=r"c.TXT: expected names \*.txt, rename it"):
        text.read(tmp_path)


def test_language_reference_is_long_and_the_same_every_time():
    reference = text.language_reference()
    assert len(reference) > 300_000
    assert 'The "try" statement' in reference
    assert reference == text.language_reference()
    assert reference.index('The "assert" statement') < reference.index('The "while" statement')


@settings(deadline=None)
@given(train=st.text(min_size=1), other=st.text())
def test_vocabulary_round_trips_what_it_knows_and_marks_what_it_does_not(train, other):
    vocabulary = Vocabulary.of(train)
    tokens = vocabulary.encode(train)
    assert tokens.dtype == np.int32
    assert vocabulary.size == len(set(train)) + 1
    assert set(tokens.tolist()) == set(range(1, vocabulary.size))
    assert vocabulary.decode(tokens) == train
    expected = "".join(c if c in train else text.UNKNOWN for c in other)
    assert vocabulary.decode(vocabulary.encode(other)) == expected
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


def test_vocabulary_refuses_what_it_cannot_hold():
    vocabulary = Vocabulary.of("ab")
    with pytest.raises(ValueError, match=r"tokens must be in range\(3\), got 3"):
        vocabulary.decode([1, 3])
    with pytest.raises(TypeError, match=r"tokens must be integers, got float64"):
        vocabulary.decode([0.7])
    assert vocabulary.decode([]) == ""
    with pytest.raises(ValueError, match=r"tokens must have shape \[N\], got \(1, 2\)"):
        vocabulary.decode(jnp.ones((1, 2), jnp.int32))
    with pytest.raises(ValueError, match="needs a training text"):
        Vocabulary.of("")
    for wrong in ({"characters": "ba"}, {"characters": "aa"}, {"characters": ""}, {"letters": "ab"}, ["ab"]):
        with pytest.raises(ValueError, match="distinct characters in code point order"):
            Vocabulary.from_json(json.dumps(wrong))


@settings(deadline=None)
@given(source=st.text(min_size=20), first=st.floats(0.1, 0.8))
def test_split_parts_join_to_the_text(source, first):
    parts = text.split(source, (first, 1 - first))
    assert "".join(parts) == source
    assert abs(len(parts[0]) - first * len(source)) <= 0.5 + 1e-6


def test_split_ends_at_the_end_of_the_text_whatever_the_fractions_round_to():
    parts = text.split("x" * 6_000_000, (0.3333333, 0.3333333, 0.3333333))
    assert list(map(len, parts)) == [2_000_000, 2_000_000, 2_000_000]


def test_split_refuses_bad_fractions():
    assert text.split("abcdefghij") == ("abcdefgh", "i", "j")
    for wrong in ((0.5, 0.4), (1.2, -0.2), (1.0, 0.0)):
        with pytest.raises(ValueError, match="fractions must be positive and sum to 1"):
            text.split("abcdefghij", wrong)
    with pytest.raises(ValueError, match="3 characters are too few"):
        text.split("abc")


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 60), batch=st.integers(1, 6), length=st.integers(1, 5))
def test_chunks_of_a_lane_joined_are_the_text(count, batch, length):
    tokens = np.arange(count)
    if count // batch <= length:
        with pytest.raises(ValueError, match=r"a chunk of length|batch must be between"):
            text.chunks(text.lanes(tokens, batch), length)
        assert text.left_over(count, batch, length) == count - 1
        return
    streams = text.lanes(tokens, batch)
    assert streams.shape == (count // batch, batch)
    assert streams.dtype == np.int32
    parts = [chunk(streams, i, length) for i in range(text.chunks(streams, length))]
    inputs = np.concatenate([p[0] for p in parts])
    targets = np.concatenate([p[1] for p in parts])
    assert streams.shape[0] - length <= len(inputs) < streams.shape[0]  # no whole chunk is left over
    first = np.arange(batch) * (count // batch)
    np.testing.assert_array_equal(inputs, np.arange(len(inputs))[:, None] + first)
    np.testing.assert_array_equal(targets, inputs + 1)
    assert text.left_over(count, batch, length) == len(set(range(1, count)) - set(targets.ravel().tolist()))


def test_lanes_and_chunks_too_short_are_refused():
    streams = text.lanes(np.arange(12), 3)
    with pytest.raises(ValueError, match="batch must be between 1 and the 12 tokens, got 13"):
        text.lanes(np.arange(12), 13)
    for wrong in (2**31, -1):
        with pytest.raises(ValueError, match=r"tokens must be in range\(2\*\*31\), got"):
            text.lanes(np.array([1, wrong]), 1)
    with pytest.raises(ValueError, match=r"tokens must be integers of shape \[M\], got float64 \(3,\)"):
        text.lanes(np.zeros(3), 1)
    with pytest.raises(ValueError, match="length 4 needs 5 tokens in each lane, got 4 in each of 3 lanes"):
        text.chunks(streams, 4)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        text.chunks(streams, 0)
    with pytest.raises(ValueError, match=r"index must be in range\(1\), got 1"):
        text.chunk(streams, 1, 3)


def test_tiny_shakespeare_reads_whole(data_dir):
    path = data_dir / "tinyshakespeare"
    if not path.is_dir():
        pytest.skip(f"no tiny Shakespeare at {path}")
    source = text.read(path)
    assert len(source) == 1_115_394
    assert Vocabulary.of(source).size == 66
