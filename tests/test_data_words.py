"""Words of lines: where a line ends, and that a word is one however it was typed."""

import pytest

from seqjax.data import words


@pytest.mark.parametrize("inside", ["\f", "\v", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\xa0", "\u3000"])
def test_white_space_that_ends_no_line_only_parts_words(inside):
    assert words.split(f"to{inside}be\nor\n") == ["to", "be", "<eos>", "or", "<eos>"]


def test_lines_end_as_in_a_file():
    assert words.split("to\r\nbe\ror\n\nnot") == ["to", "<eos>", "be", "<eos>", "or", "<eos>", "<eos>", "not", "<eos>"]
    assert words.split("") == []


def test_a_word_is_one_however_it_was_typed():
    vocabulary = words.Vocabulary.of("cafe\u0301 नमस्ते می\u200cخ")
    assert vocabulary.words == ("<eos>", "café", "می\u200cخ", "नमस्ते")
    assert vocabulary.encode("café cafe\u0301").tolist() == [2, 2, 1]


def test_tokens_that_are_none_are_refused():
    vocabulary = words.Vocabulary.of("to be")
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=rf"tokens must be in range\(4\), got {wrong}"):
            vocabulary.decode([1, wrong])
    with pytest.raises(TypeError, match="tokens must be integers, got float64"):
        vocabulary.decode([1.5])
