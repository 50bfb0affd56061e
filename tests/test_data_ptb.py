"""Words as tokens, and the Penn Treebank: every form that its files come in, and every way that they can be damaged."""

import gzip
import hashlib
import io
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from seqjax.data import builders, ptb, text, words

TEXTS = ptb.generated(20)


def test_words_are_numbered_in_code_point_order_after_the_unknown():
    vocabulary = words.Vocabulary.of(" the <unk> sat \n on the mat")
    assert vocabulary.words == ("<eos>", "mat", "on", "sat", "the")
    assert vocabulary.size == 6
    tokens = vocabulary.encode("the dog sat\n\non <unk>")
    np.testing.assert_array_equal(tokens, [5, 0, 4, 1, 1, 3, 0, 1])
    assert tokens.dtype == np.int32
    assert vocabulary.decode(tokens) == "the <unk> sat\n\non <unk>\n"
    assert vocabulary.decode([1, 5]) == "\nthe"
    assert vocabulary.encode("").shape == (0,)
    assert words.Vocabulary.from_json(vocabulary.to_json()) == vocabulary


@pytest.mark.parametrize(
    "content", ["[]", '{"words": []}', '{"words": ["b", "a"]}', '{"words": [1]}', '{"words": "ab"}']
)
def test_a_vocabulary_is_read_from_what_it_wrote_only(content):
    with pytest.raises(ValueError, match=r'expected \{"words": distinct words in code point order}, got '):
        words.Vocabulary.from_json(content)


def test_bad_tokens_and_texts_are_named():
    with pytest.raises(ValueError, match="a training text with words, got none"):
        words.Vocabulary.of(" \n")
    vocabulary = words.Vocabulary.of("a")
    with pytest.raises(ValueError, match=r"must be in range\(3\), got 3"):
        vocabulary.decode([3])
    with pytest.raises(ValueError, match=r"must have shape \[N\], got \(1, 1\)"):
        vocabulary.decode(np.zeros((1, 1), np.int32))


def write(folder, suffix=""):
    """The three files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in ptb.FILES.items():
        content = TEXTS[part].encode()
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content, mtime=0) if suffix else content)
    return folder


def archive(path, names=tuple(ptb.FILES.values())):
    """An archive of the official layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for part, name in ptb.FILES.items():
            content = TEXTS[part].encode()
            for member in (f"./simple-examples/data/{name}", f"./simple-examples/rnnlm-0.2b/{name}.output"):
                header = tarfile.TarInfo(member)
                header.size = len(content)
                if name in names:
                    tar.addfile(header, io.BytesIO(content))
    return path


def test_every_form_of_the_files_holds_the_same_texts(tmp_path):
    found = [
        ptb.load(write(tmp_path / "plain")),
        ptb.load(write(tmp_path / "zipped", ".gz")),
        ptb.load(write(tmp_path / "shared" / "ptb", ".gz").parent),
        ptb.load(write(tmp_path / "unpacked" / "simple-examples" / "data").parents[1]),
        ptb.load(archive(tmp_path / "simple-examples.tgz")),
        ptb.load(archive(tmp_path / "folder" / "simple-examples.tgz").parent),
    ]
    assert found == [TEXTS] * 6
    assert list(found[0]) == ["train", "validation", "test"]


def test_faults_are_named_with_their_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing: no such file or folder, expected ptb.train.txt or "):
        ptb.load(tmp_path / "nothing")
    (tmp_path / "other.txt").write_text("other")
    with pytest.raises(
        FileNotFoundError, match=r"no ptb.train.txt or ptb.train.txt.gz or simple-examples.tgz in it, found other"
    ):
        ptb.load(tmp_path)
    folder = write(tmp_path / "ptb", ".gz")
    file = folder / "ptb.valid.txt.gz"
    whole = file.read_bytes()
    for damaged in (whole[:-9], whole[:30] + b"\0\0\0\0" + whole[34:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"ptb.valid.txt.gz: damaged: "):
            ptb.load(tmp_path)
    file.write_bytes(gzip.compress(b"caf\xe9"))
    with pytest.raises(ValueError, match=r"ptb.valid.txt.gz is not UTF-8: .* at offset 3"):
        ptb.load(tmp_path)
    file.write_bytes(gzip.compress(b" \n"))
    with pytest.raises(ValueError, match=r"ptb.valid.txt.gz is empty"):
        ptb.load(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no ptb.valid.txt or ptb.valid.txt.gz in it, found ptb.test"):
        ptb.load(tmp_path)
    broken = archive(tmp_path / "simple-examples.tgz", names=("ptb.train.txt", "ptb.test.txt"))
    with pytest.raises(ValueError, match=r"simple-examples.tgz: no ptb.valid.txt in it"):
        ptb.load(broken)
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as twice:
        for member in ("old/ptb.test.txt", "new/ptb.test.txt"):
            twice.writestr(member, " a \n")
    with pytest.raises(ValueError, match=r"old/ptb.test.txt and new/ptb.test.txt: expected one ptb.test.txt"):
        ptb.load(tmp_path / "twice.zip")
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"simple-examples.tgz: damaged"):
        ptb.load(broken)


def test_generated_sentences_are_of_their_seed_and_agree():
    assert ptb.generated(20) == TEXTS
    assert ptb.generated(20, seed=1) != TEXTS
    assert [len(content.splitlines()) for content in TEXTS.values()] == [20, 4, 4]
    for line in TEXTS["train"].splitlines():
        many = any(word in line for word in ("banks", "traders"))
        assert many != any(word in line.split() for word in ("rises", "falls"))


def test_penn_treebank_is_prepared_and_read_back_exactly(tmp_path, monkeypatch):
    md5 = {part: hashlib.md5(content.encode()).hexdigest() for part, content in TEXTS.items()}
    monkeypatch.setattr(builders.PennTreebank, "md5", md5)
    asked = []
    file = archive(tmp_path / "download_without_a_suffix")
    monkeypatch.setattr(tfds.download.DownloadManager, "download", lambda self, url: asked.append(url) or file)
    assert builders.penn_treebank(tmp_path / "downloaded") == TEXTS
    assert asked == ["http://www.fit.vutbr.cz/~imikolov/rnnlm/simple-examples.tgz"]
    manual = write(tmp_path / "manual", ".gz")
    assert builders.penn_treebank(tmp_path / "data", manual) == TEXTS
    assert len(asked) == 1
    for written in manual.iterdir():
        written.unlink()
    assert builders.penn_treebank(tmp_path / "data") == TEXTS  # prepared once
    info = builders.PennTreebank(data_dir=tmp_path, file_format="array_record").info
    assert "research" in info.redistribution_info.license
    assert info.citation.startswith("@")
    assert "tensorflow" not in sys.modules


def test_another_text_is_refused_and_nothing_is_prepared(tmp_path):
    with pytest.raises(ValueError, match=r"ptb.train.txt: md5 [0-9a-f]{32}, expected f26c4b92"):
        builders.penn_treebank(tmp_path / "data", write(tmp_path / "manual"))
    assert not list((tmp_path / "data").rglob("*.array_record*"))


def test_the_real_treebank_is_the_one_of_the_papers(data_dir):
    if not (data_dir / "ptb").is_dir():
        pytest.skip(f"no Penn Treebank at {data_dir / 'ptb'}")
    parts = ptb.load(data_dir)
    assert {part: hashlib.md5(content.encode()).hexdigest() for part, content in parts.items()} == ptb.MD5
    vocabulary = words.Vocabulary.of(parts["train"])
    assert vocabulary.size == 10_000
    tokens = {part: vocabulary.encode(content) for part, content in parts.items()}
    assert {part: len(found) for part, found in tokens.items()} == {
        "train": 929_589,
        "validation": 73_760,
        "test": 82_430,
    }
    # No word of the other parts is new: what is unknown is written out as such.
    assert (tokens["validation"] == 0).sum() == parts["validation"].split().count("<unk>")
    assert text.chunks(text.lanes(tokens["train"], 20), 20) == 2323
