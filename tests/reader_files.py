"""Small files for every reader of `seqjax.data`, packed in every way, and a second opinion of what they say."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from seqjax.data import embeddings, jena, mnist, music, nab, pairs, ptb, reviews, spoken_digits, text, ucr, vectorize

Files = dict[str, bytes]


class Reader(NamedTuple):
    """What is fuzzed.

    Attributes:
      name: of the reader, and of the form of its file.
      files: a small data set, by file names.
      read: folder to data.
      check: files and data, asserts that these are consistent.
      archive: the name of an archive of `files`, without its ending.
      plain: whether the files are read as they are; if not, `archive` is the whole name of theirs.
      streams: whether each file may be packed by itself.
      of_files: whether each may lie in an archive of its own.
    """

    name: str
    files: Files
    read: Callable[[Path], Any]
    check: Callable[[Files, Any], None]
    archive: str = ""
    plain: bool = True
    streams: bool = True
    of_files: bool = True


class Case(NamedTuple):
    """A reader, and how its files are packed: `pack` takes them to the files on the disk.

    `checked` says whether a checksum is around all of what the files hold.
    """

    reader: Reader
    packing: str
    pack: Callable[[Files], Files]
    checked: bool


# Packing


def tar(files: Files, mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode=mode, format=form) as archive:  # pyright: ignore
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return file.getvalue()


def zipped(files: Files, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content, method)
        return file.getvalue()


STREAMS = {".gz": partial(gzip.compress, mtime=0), ".bz2": bz2.compress, ".xz": lzma.compress}
ARCHIVES: dict[str, Callable[[Files], bytes]] = {
    ".zip": zipped,
    ".stored.zip": partial(zipped, method=zipfile.ZIP_STORED),
    ".lzma.zip": partial(zipped, method=zipfile.ZIP_LZMA),
    ".tar": tar,
    ".gnu.tar": partial(tar, form=tarfile.GNU_FORMAT),
    ".tar.gz": lambda files: gzip.compress(tar(files), mtime=0),
    ".tar.bz2": partial(tar, mode="w:bz2"),
    ".tar.xz": partial(tar, mode="w:xz"),
}
CHECKED = (".zip", ".stored.zip", ".lzma.zip", ".tar.gz", ".tar.bz2", ".tar.xz")


def _each(pack: Callable[[bytes], bytes], end: str, files: Files) -> Files:
    return {name + end: pack(content) for name, content in files.items()}


def _each_alone(pack: Callable[[Files], bytes], end: str, files: Files) -> Files:
    return {name + end: pack({name: content}) for name, content in files.items()}


def _all(pack: Callable[[Files], bytes], name: str, files: Files) -> Files:
    return {name: pack(files)}


def cases() -> list[Case]:
    """Every reader with every packing that it reads."""
    found = []
    for reader in readers():
        if not reader.plain:
            for packing in (".zip", ".stored.zip"):
                found.append(Case(reader, packing, partial(_all, ARCHIVES[packing], reader.archive), True))
            continue
        found.append(Case(reader, "", dict, False))
        if reader.streams:
            found += [Case(reader, end, partial(_each, pack, end), True) for end, pack in STREAMS.items()]
        for packing, pack in ARCHIVES.items():
            end, checked = packing.replace(".stored", "").replace(".lzma", "").replace(".gnu", ""), packing in CHECKED
            if reader.archive:
                found.append(Case(reader, packing, partial(_all, pack, reader.archive + end), checked))
            elif reader.of_files:
                found.append(Case(reader, packing, partial(_each_alone, pack, end), checked))
    return found


# What the readers read, and a second opinion of what that is


def finite(*arrays: Any) -> None:
    assert all(np.isfinite(array).all() for array in arrays)


def whole_text(files: Files, data: str) -> None:
    assert data == "".join(files[name].decode("utf-8-sig") for name in sorted(files))


def text_parts(files: Files, data: dict[str, str]) -> None:
    names = {"train": "train", "validation": "valid", "test": "test"}
    for part, name in names.items():
        found = next(content for path, content in files.items() if f".{name}." in path)
        assert data[part] == found.decode("utf-8-sig")


def sentence_pairs(files: Files, data: Any) -> None:
    lines = [line for line in files["fra.txt"].decode("utf-8-sig").split("\n") if line.strip("\r")]
    assert 1 <= len(data.source) == len(data.target) <= len(lines)
    assert all(map(str.strip, data.source))


def word_list(files: Files, data: Any) -> None:
    assert list(data.words) == json.loads(files["words.json"].decode("utf-8-sig"))


def vectorizer(files: Files, data: Any) -> None:
    said = json.loads(files["vectorizer.json"].decode("utf-8-sig"))
    assert list(data.vocabulary) == said["vocabulary"]
    assert data.documents == said["documents"]
    assert len(data.frequencies) == len(data.vocabulary)
    finite(data.idf)


def review_parts(files: Files, data: Any) -> None:
    count = 0
    for part, found in data.items():
        texts = {content.decode("utf-8-sig") for name, content in files.items() if f"/{part}/" in f"/{name}"}
        assert set(found.texts) <= texts
        assert len(found.texts) == len(found.labels) == len(found.stars) == len(found.films)
        count += len(found.texts)
    assert count == sum("/neg/" in name or "/pos/" in name for name in files)


def vectors(files: Files, data: Any) -> None:
    finite(data.vectors)
    assert data.known.any()
    assert not data.vectors[~data.known].any()
    rows = {}
    for line in next(iter(files.values())).decode("utf-8-sig").split("\n"):
        word, *numbers = line.rstrip("\r ").split(" ")
        if len(numbers) == data.vectors.shape[1]:
            rows.setdefault(word, numbers)
    for word, row in zip(VOCABULARY.vocabulary, data.vectors[2:], strict=True):
        if data.known[VOCABULARY.vocabulary.index(word) + 2] and word in rows:
            assert row.tolist() == np.array(rows[word], np.float64).astype(np.float32).tolist()


def series(files: Files, data: Any) -> None:
    assert set(data) == {"train", "test"}
    for part in data.values():
        finite(part.values)
        assert part.values.ndim == 3
        assert len(part.values) == len(part.lengths) == len(part.labels) > 0
        assert part.lengths.min() >= 1
        assert part.lengths.max() <= part.values.shape[1]
        assert 0 <= part.labels.min() <= part.labels.max() < len(part.classes)
        assert not part.values[np.arange(part.values.shape[1]) >= part.lengths[:, None]].any()


def stream(files: Files, data: Any) -> None:
    times, values = data
    finite(values)
    lines = next(iter(files.values())).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    assert len(times) == len(values) > 0
    assert values.tolist() == [float(line.partition(",")[2]) for line in lines[1 : len(values) + 1]]


def corpus(files: Files, data: Any) -> None:
    names = json.loads(next(content for name, content in files.items() if name.endswith(".json")).decode("utf-8-sig"))
    assert list(data) == sorted(names)
    for name, one in data.items():
        stream({name: next(content for path, content in files.items() if path.endswith(name))}, one[:2])
        assert ((one.windows >= 0) & (one.windows < len(one.values))).all()
        assert len(one.windows) == len(names[name])


def record(files: Files, data: Any) -> None:
    values, times, columns = data
    finite(values)
    assert values.shape == (len(times), len(columns))
    assert (np.diff(times) > np.timedelta64(0, "s")).all()
    if "X.npy" in files:
        arrays = {name: np.load(io.BytesIO(content)) for name, content in files.items()}
        assert set(values.ravel()) <= set(arrays["X.npy"].astype(np.float32).ravel())


def digits(files: Files, data: Any) -> None:
    for part, name in (("train", "train"), ("test", "t10k")):
        assert data[part].images.tobytes() == files[f"{name}-images-idx3-ubyte"][16:]
        assert data[part].labels.astype(np.uint8).tobytes() == files[f"{name}-labels-idx1-ubyte"][8:]
        assert data[part].labels.max() <= 9


def rolls(files: Files, data: Any) -> None:
    assert set(data) == {"train", "validation", "test"}
    for roll in (roll for part in data.values() for roll in part):
        assert roll.dtype == np.uint8
        assert roll.shape[1] == 88
        assert len(roll) >= 2
        assert np.isin(roll, (0, 1)).all()
    if content := files.get("jsb-chorales-16th.json"):
        said = json.loads(content.decode("utf-8-sig"))["train"]
        assert [[set(np.flatnonzero(step) + 21) for step in roll] for roll in data["train"]] == [
            [set(chord) for chord in sequence] for sequence in said
        ]


def recordings(files: Files, data: Any) -> None:
    assert len(data.samples) == len(files)
    for samples, name in zip(data.samples, sorted(files), strict=True):
        assert samples.dtype == np.int16
        assert len(samples) > 0
        if files[name][:44] == WAV[:44]:  # no damage there
            assert samples.tobytes() == files[name][44:48]


def wav(samples: bytes) -> bytes:
    form = bytes.fromhex("666d742010000000010001 00401f0000803e000002001000")
    chunks = b"WAVE" + form + b"data" + len(samples).to_bytes(4, "little") + samples
    return b"RIFF" + len(chunks).to_bytes(4, "little") + chunks


def matlab(compressed: bool) -> bytes:
    cells = {}
    for name in ("traindata", "validdata", "testdata"):
        cells[name] = np.empty((1, 2), object)
        cells[name][0, :] = [np.eye(3, 88, 40), np.eye(2, 88, 30)]
    with io.BytesIO() as file:
        scipy.io.savemat(file, cells, do_compression=compressed)
        return b"MATLAB 5.0 MAT-file".ljust(116) + file.getvalue()[116:]


def npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


VOCABULARY = vectorize.fit(["the cat sat on the mat"])
WAV = wav(b"\1\0\2\0")
JENA = (
    "Date Time,p (mbar),T (degC),rh (%)\n01.01.2009 00:10:00,996.52,-8.02,93.3\n"
    "01.01.2009 00:20:00,996.57,-8.41,93.4\n01.01.2009 00:30:00,996.53,-9999,93.9\n"
)
BENCHMARK = "date,p (mbar),OT\n2020-01-01 00:10:00,1008.89,401.1\n2020-01-01 00:20:00,1008.76,400.2\n"
STREAM = b"timestamp,value\n2014-01-01 00:00:00,1.5\n2014-01-01 00:05:00,-2e3\n2014-01-01 00:10:00,.25\n"
CHORALES = {"train": [[[60, 64], [64]], [[21], [], [108]]], "valid": [[[60], []]], "test": [[[], [21]]]}
TS = (
    b"# a comment\n@problemName E\n@timeStamps false\n@univariate false\n@dimensions 2\n@equalLength false\n"
    b"@classLabel true 1 2.5\n@data\n1,2,3:4,5,?:1\n-1.5,2e-3:0,0:2.5\n"
)
NPZ = {
    "X.npy": npy(np.array([[996.5, -8.0], [996.6, -8.4], [996.5, -8.5]])),
    "dates.npy": npy(np.array(["2009-01-01T00:10", "2009-01-01T01:10", "2009-01-01T02:10"], "datetime64[ns]")),
    "cols.npy": npy(np.array(["p (mbar)", "T (degC)"])),
}
MNIST = {
    f"{part}-{name}": b"\0\0\x08" + head + body
    for part in ("train", "t10k")
    for name, head, body in (
        ("images-idx3-ubyte", b"\3\0\0\0\2" + b"\0\0\0\x1c" * 2, bytes(range(196)) * 8),
        ("labels-idx1-ubyte", b"\1\0\0\0\2", b"\5\7"),
    )
}


def both(name: str, content: bytes) -> Files:
    return {name.format(part): content for part in ("TRAIN", "TEST")}


def readers() -> list[Reader]:
    def climate(folder: Path) -> Any:
        found = jena.load(folder)
        return found.values, found.times, found.columns

    with tempfile.TemporaryDirectory() as folder:
        VOCABULARY.save(Path(folder) / "v")
        saved = (Path(folder) / "v").read_bytes()
    problem = partial(ucr.load, name="E")
    prose = "To be, or not to be: that is the question.\nÀ l'œuvre !\r\n".encode()
    glove = b"the 0.5 -1 2e-3\ncat 1 2 3\n. . 4 5 6\nsat .5 .5 -.5\n"
    return [
        Reader("text file", {"a.txt": prose}, lambda f: text.read(next(f.iterdir())), whole_text),
        Reader("text folder", {"a.txt": prose, "b.txt": b"so\n"}, text.read, whole_text),
        Reader(
            "ptb files",
            {f"ptb.{part}.txt": b" the cat <unk> \n a N \n" for part in ("train", "valid", "test")},
            ptb.load,
            text_parts,
        ),
        Reader(
            "ptb archive",
            {f"simple-examples/data/ptb.{part}.txt": b" the cat \n" * 9 for part in ("train", "valid", "test")},
            ptb.load,
            text_parts,
            "simple-examples",
        ),
        Reader(
            "pairs",
            {"fra.txt": "Go.\tVa !\nHi.\tSalut.\tCC-BY\r\nI see.\tJe l'ai vu, é.\n".encode()},
            pairs.load,
            sentence_pairs,
            "fra-eng",
        ),
        Reader(
            "pairs vocabulary",
            {"words.json": '["le", "chat", "é"]'.encode()},
            lambda f: pairs.Vocabulary.load(next(f.iterdir())),
            word_list,
        ),
        Reader("vectorizer", {"vectorizer.json": saved}, lambda f: vectorize.load(next(f.iterdir())), vectorizer),
        Reader(
            "reviews",
            {
                f"aclImdb/{part}/{name}": content
                for part in ("train", "test")
                for name, content in (
                    ("neg/0_2.txt", b"bad, bad"),
                    ("pos/0_9.txt", "très good".encode()),
                    ("urls_pos.txt", b"film a\n"),
                )
            },
            reviews.load,
            review_parts,
            "aclImdb_v1",
        ),
        Reader("glove", {"g.txt": glove}, lambda f: embeddings.load(next(f.iterdir()), VOCABULARY), vectors),
        Reader(
            "word2vec", {"w.txt": b"4 3\n" + glove}, lambda f: embeddings.load(next(f.iterdir()), VOCABULARY), vectors
        ),
        Reader("ucr txt", both("E_{}.txt", b"  1.0000e+00 0.5 -2e1 3\n  -1 1 2 3\n"), problem, series),
        Reader("ucr tsv", both("E_{}.tsv", b"1\t0.5\t2\tNaN\n2\t1\t2\t3\n"), problem, series),
        Reader("ucr ts", both("E_{}.ts", TS), problem, series),
        Reader("ucr archive", both("E/E_{}.ts", TS), problem, series, "E"),
        Reader("nab csv", {"a.csv": STREAM}, lambda f: nab.read_csv(next(f.iterdir())), stream),
        Reader(
            "nab archive",
            {
                "NAB/data/a/b.csv": STREAM,
                "NAB/data/a/c.csv": STREAM,
                "NAB/labels/combined_windows.json": json.dumps(
                    {"a/b.csv": [["2014-01-01 00:00:00.000000", "2014-01-01 00:05:00.000000"]], "a/c.csv": []}
                ).encode(),
            },
            nab.load,
            corpus,
            "NAB",
        ),
        Reader("jena csv", {"jena_climate_2009_2016.csv": JENA.encode()}, climate, record),
        Reader("jena station", {"mpi_roof_2020.csv": JENA.encode()}, climate, record),
        Reader(
            "jena benchmark", {"weather.csv": BENCHMARK.encode()}, climate, record, "jena_10min_2020", streams=False
        ),
        Reader("jena npz", NPZ, climate, record, "jena_hourly_2009_2016.npz", plain=False),
        Reader("mnist", MNIST, mnist.load, digits),
        Reader(
            "music json",
            {"jsb-chorales-16th.json": json.dumps(CHORALES).encode()},
            lambda f: music.load(f, "jsb_16th"),
            rolls,
        ),
        Reader("music mat", {"JSB_Chorales.mat": matlab(False)}, music.load, rolls),
        Reader("music mat compressed", {"JSB_Chorales.mat": matlab(True)}, music.load, rolls),
        Reader(
            "wav archive",
            {f"recordings/{i}_ada_{i}.wav": WAV for i in range(4)},
            spoken_digits.load,
            recordings,
            "fsdd",
            streams=False,
        ),
        Reader(
            "wav folder",
            {f"{i}_ada_{i}.wav": WAV for i in range(2)},
            spoken_digits.load,
            recordings,
            streams=False,
            of_files=False,
        ),
    ]
