"""Pairs of sentences: what is read, how it is cut into tokens and split, and what is said of damaged files."""

import hashlib
import zipfile

import pytest
import tensorflow_datasets as tfds

from seqjax.data import builders, pairs

TEXT = (
    "Go.\tVa !\nRun!\tCours\u202f!\nrun!\tCourez\xa0!\nRun!\tCours !\n"
    "Are you here?\tE\u0301tes-vous la\u0300\u2009?\tCC-BY 2.0 (France) Attribution: tatoeba.org #1\n"
)


@pytest.fixture
def archive(tmp_path):
    folder = tmp_path / "nmt"
    folder.mkdir()
    with zipfile.ZipFile(folder / "fra-eng.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("_about.txt", "about")
        packed.writestr("fra.txt", TEXT)
    return folder / "fra-eng.zip"


def test_pairs_are_read_from_the_archive_its_folder_or_the_text(archive, tmp_path):
    plain = tmp_path / "fra.txt"
    plain.write_bytes(TEXT.replace("\n", "\r\n").encode())
    found = pairs.load(archive)
    assert found.source == ("Go.", "Run!", "run!", "Are you here?")
    assert found.target == ("Va !", "Cours !", "Courez !", "Étes-vous là ?")
    assert found == pairs.load(archive.parent) == pairs.load(archive.parent.parent) == pairs.load(plain)
    assert found.references()["Run!"] == ("Cours !",)
    assert found.take([3, 0]).source == ("Are you here?", "Go.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qu'a-t-il dit ?", ["qu'", "a", "-t", "-il", "dit", "?"]),
        ("L’arbre, c'est l'arbre.", ["l'", "arbre", ",", "c'", "est", "l'", "arbre", "."]),
        ("It's 10:30, 2,5 km!", ["it'", "s", "10:30", ",", "2,5", "km", "!"]),
        ("« Où\u202f? »", ["«", "où", "?", "»"]),
        ("E\u0301te\u0301 x\u0302y \u0130stanbul", ["été", "x̂y", "i̇stanbul"]),
        ("नमस्ते दुनिया! สวัสดี", ["नमस्ते", "दुनिया", "!", "สวัสดี"]),
        # ruff: noqa: RUF001  letters of other scripts
        ("می\u200cخواهم، שָׁלוֹם", ["می\u200cخواهم", "،", "שָׁלוֹם"]),
        ("葛\U000e0101城 \U00011103\U00011127", ["葛\U000e0101城", "\U00011103\U00011127"]),  # variant, vowel sign
        ("1\ufe0f\u20e3 12,5 ❤\ufe0f.", ["1\ufe0f\u20e3", "12,5", "❤\ufe0f", "."]),
    ],
)
def test_tokens(text, expected):
    assert pairs.tokens(text) == expected
    assert pairs.tokens(pairs.join(expected)) == expected


def test_joined_tokens_are_the_text():
    for text in ("qu'a-t-il dit, hier ?", "l'arbre, c'est l'arbre.", "« où ? »"):
        assert pairs.join(pairs.tokens(text)) == text


def test_no_sentence_stands_in_two_parts():
    found = pairs.Pairs(
        tuple(f"{'Run' if i % 2 else 'run'} {i // 4}." for i in range(400)), tuple(str(i) for i in range(400))
    )
    parts = pairs.split(found, 10, 20, seed=1)
    keys = {name: {text.lower() for text in part.source} for name, part in parts.items()}
    assert [len(keys[name]) for name in ("train", "validation", "test")] == [70, 10, 20]
    assert len(set.union(*keys.values())) == 100
    assert sorted(sum((part.target for part in parts.values()), ())) == sorted(found.target)
    assert pairs.split(found, 10, 20, seed=1) == parts != pairs.split(found, 10, 20, seed=2)
    with pytest.raises(ValueError, match="100 source sentences cannot be split into 50 for validation, 50 for testing"):
        pairs.split(found, 50, 50)


def test_a_vocabulary_keeps_what_is_frequent(tmp_path):
    known = pairs.vocabulary(["the cat.", "the dog.", "A cat."], minimum=2)
    assert known.words == (".", "cat", "the")
    assert known.size == 7
    row = known.encode("The dog, the cat")
    assert row.tolist() == [6, pairs.UNKNOWN, pairs.UNKNOWN, 6, 5, pairs.STOP]
    assert row.dtype.name == "int32"
    assert known.decode([pairs.START, *row, 4]) == ["the", "[UNK]", "[UNK]", "the", "cat"]
    assert known.decode([pairs.PADDING]) == []
    for wrong in (-1, known.size):
        with pytest.raises(ValueError, match=rf"tokens must be in range\({known.size}\), got {wrong}"):
            known.decode([4, wrong])
    known.save(tmp_path / "words.json")
    assert pairs.Vocabulary.load(tmp_path / "words.json") == known
    (tmp_path / "words.json").write_text("{}")
    with pytest.raises(ValueError, match=r"words.json is not a vocabulary: expected a list of words"):
        pairs.Vocabulary.load(tmp_path / "words.json")
    for wrong in ("[]", '["a", "a"]', "[1]", '"ab"', "[", '{"a": 1, "a": 2}'):
        (tmp_path / "words.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"words.json(: not JSON| is not a vocabulary): "):
            pairs.Vocabulary.load(tmp_path / "words.json")
    with pytest.raises(ValueError, match="none of 1 tokens occurs 2 times"):
        pairs.vocabulary(["cat"], minimum=2)


def test_generated_pairs_are_a_language():
    found = pairs.generated(200, seed=1)
    assert found == pairs.generated(200, seed=1) != pairs.generated(200, seed=2)
    assert all(len(targets) == len(found.source) for targets in found)
    words = dict(zip(*found, strict=True))
    assert all(words[a] == b for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Go.\tVa !\nRun!\n", r"fra.txt, line 2: expected source TAB target \(TAB attribution\), got 'Run!'"),
        (b"Go.\tVa !\ta\tb\n", r"fra.txt, line 1: expected source TAB target"),
        (b"Go.\t \n", r"fra.txt, line 1: expected source TAB target"),
        (b"Go.\tVa !\nRun!\tCo\xe9\n", r"fra.txt is not UTF-8: .*, line 2"),
        (b"\n", r"fra.txt: contains no pairs"),
    ],
)
def test_damaged_text_is_named(tmp_path, content, message):
    (tmp_path / "fra.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        pairs.load(tmp_path)


def test_what_is_missing_or_damaged_is_named(archive, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone: no such file or folder, expected \*-eng.zip or fra.txt"):
        pairs.load(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*-eng.zip or fra.txt or fra.txt.gz in it, found nothing"):
        pairs.load(tmp_path / "empty")
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"fra-eng.zip: damaged( or not an archive)?: "):
        pairs.load(archive)
    place = whole.index(b"fra.txt") + 20
    archive.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    with pytest.raises(ValueError, match=r"fra-eng.zip: damaged( or not an archive)?: "):
        pairs.load(archive)
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("_about.txt", "about")
    with pytest.raises(ValueError, match=r"fra-eng.zip: expected one .txt with pairs in it, found \['_about.txt'\]"):
        pairs.load(archive)


def test_pairs_are_prepared_and_read_back_exactly(archive, tmp_path, monkeypatch):
    def no_download(*_):
        raise AssertionError("must not download")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", no_download)
    with pytest.raises(ValueError, match=r"fra-eng.zip: its pairs have sha256 [0-9a-f]{64}, expected 2546838a"):
        builders.french_english(tmp_path / "data", archive.parent)
    assert not list((tmp_path / "data").rglob("*.array_record*"))
    monkeypatch.setattr(builders.FrenchEnglish, "sha256", hashlib.sha256(TEXT.encode()).hexdigest())
    expected = pairs.load(archive)
    assert builders.french_english(tmp_path / "data", archive.parent) == expected
    archive.unlink()
    assert builders.french_english(tmp_path / "data") == expected
    info = builders.FrenchEnglish(data_dir=tmp_path, file_format="array_record").info
    assert "CC BY 2.0" in info.redistribution_info.license
    assert info.citation.startswith("@")


def test_the_real_pairs(data_dir):
    if not (data_dir / "nmt").is_dir():
        pytest.skip(f"no pairs at {data_dir / 'nmt'}")
    content = pairs.read(data_dir)
    assert hashlib.sha256(content).hexdigest() == builders.FrenchEnglish.sha256
    found = pairs.parse(content)
    assert len(found.source) == 142_611  # 142,787 lines, some of which differ in nothing but spaces
    assert len(set(found.source)) == 98_659
    assert found.target[0] == "Va !"
