"""Lines and numbers of text files: as `open` and a person read them."""

import pytest

from seqjax.data import fields

INSIDE = "\f\v\x1c\x1d\x1e\x85\u2028\u2029"
"""What ends a line for `str.splitlines`, and for nobody else."""


def test_lines_are_those_of_a_file(tmp_path):
    text = f"a{INSIDE}b\nc\r\n\r\nd\re"
    (tmp_path / "a.txt").write_bytes(text.encode())
    with open(tmp_path / "a.txt", encoding="utf-8") as file:
        assert fields.lines(text) == [line.rstrip("\n") for line in file] == [f"a{INSIDE}b", "c", "", "d", "e"]
    assert (fields.lines(""), fields.lines("\n"), fields.lines("a\n")) == ([], [""], ["a"])


NUMBERS = {"12": 12.0, "-0.5": -0.5, "+.5": 0.5, "5.": 5.0, " 1e-3\t": 0.001, "-7.25E+01": -72.5, "1e-400": 0.0}


def test_numbers_are_read_as_they_are_written():
    assert {field: fields.number(field, "here") for field in NUMBERS} == NUMBERS
    assert fields.numbers(list(NUMBERS), "here") == list(NUMBERS.values())
    assert fields.numbers([], "here") == []


@pytest.mark.parametrize(
    "field",
    [
        "",
        " ",
        "1_000",
        "١٢",
        "\uff11\uff12",
        "²",
        "nan",
        "inf",
        "-Infinity",
        "1,5",
        "1 5",
        "0x10",
        "1e",
        "e5",
        "--1",
        "1\n",
        "\xa01",
        ".",
    ],
)
def test_what_is_no_number_is_refused_with_its_place(field):
    for parse in (lambda: fields.number(field, "a.csv line 3"), lambda: fields.numbers(["1", field], "a.csv line 3")):
        with pytest.raises(ValueError, match=r"^a\.csv line 3: .* is not a number"):
            parse()


def test_a_number_that_float64_does_not_hold_is_refused():
    for parse in (lambda: fields.number("-1e400", "a.csv line 3"), lambda: fields.numbers(["1e400"], "a.csv line 3")):
        with pytest.raises(ValueError, match=r"^a\.csv line 3: -?1e400 is too large"):
            parse()
