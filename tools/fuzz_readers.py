"""Feeds damaged files to every reader of `seqjax.data`.

    python -m tools.fuzz_readers 10000         10,000 trials; prints a table by reader, and the failures
    python -m tools.fuzz_readers 1 --at=4711   repeats one trial, with the traceback of whatever it raises

A trial takes one of a fixed set of small files, plain or packed (gzip, bzip2, xz, zip, tar and compressed tar), damages
it (flips bits; overwrites, inserts, drops or repeats bytes; truncates) and reads it. It is a function of the seed and
its number. Files are damaged either as stored or before they are packed, so that parsers see damage too.

Acceptable outcomes:

    refused   a ValueError or an OSError whose message names the file, or its folder, in one line
    right     the contents of the undamaged file: the damage is in something irrelevant, such as a date
    changed   something else that is consistent with the damaged bytes; a text without a checksum in which one letter
              replaces another is a different text, which no reader can detect

What counts as consistent:

    under the checksum of gzip, bzip2, xz, zip, npz    nothing: what is not right is refused
    in a tar archive, which has none for contents      what `tarfile` extracts, as plain files; all its headers can be
                                                       read, and it is not truncated
    damaged and then packed                            the data of the same bytes unpacked, or both are refused
    in a plain file                                    what a second, simple decoder returns (texts, vectors, csv of
                                                       NAB, digits, samples, npz, vocabularies, chorales); for the rest,
                                                       numbers that are finite, and shapes and ranges as promised

Anything else is a failure: another exception, a crash, more than `SECONDS`, more than `MEMORY` touched or `ADDRESSES`
allocated. It needs Linux, to measure memory.
"""

import argparse
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.reader_files import Case, cases

ROOT = str(Path(__file__).parents[1])  # not installed, and needed by the worker, which is this file
SECONDS = 10  # of one trial; the longest takes some hundredths of one, on a quiet machine
MEMORY = 300 << 20  # bytes of one trial above all before it; archives may unpack to 64 MiB
ADDRESSES = 1 << 30  # bytes that may be allocated
LINE = 2000  # characters of an error
OUTCOMES = ("refused", "right", "changed", "failed")


PAYLOADS = (
    *(
        b"9" * 5000,
        b"[" * 3000,
        b'{"a":' * 1000,
        b"nan",
        b"inf",
        b"1e999",
        b"1e-99999999999999999999",
        b"-",
        b",",
        b"\t",
    ),
    *(
        b"\n",
        b"\r",
        b" ",
        b"\0" * 512,
        b"\xef\xbb\xbf",
        b"\xff\xff\xff\x7f",
        b"\xe2\x80\xa8",
        b"0" * 64,
        b"\x1f\x8b\x08",
    ),
)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Other bytes, or by chance the same ones."""
    made, kind = bytearray(content), rng.randrange(9)
    at, other = sorted((rng.randrange(len(made) + 1), rng.randrange(len(made) + 1)))
    other = min(other, at + rng.choice((1, 4, 64, 1024)))
    if kind == 0 and made:
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    elif kind == 1 and made:
        for _ in range(rng.choice((1, 2, 4))):
            made[rng.randrange(len(made))] = rng.choice((0, 1, 9, 10, 32, 48, 57, 127, 128, 255, rng.randrange(256)))
    elif kind == 2:
        del made[at:]
    elif kind == 3:  # the blocks that archives are made of
        del made[at // 512 * 512 :]
    elif kind == 4:
        del made[at:other]
    elif kind == 5:
        made[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
    elif kind == 6:
        made[at:at] = rng.choice(PAYLOADS)
    elif kind == 7:
        made[at:at] = made[at:other]
    else:
        made[at:other] = bytes(other - at)
    return bytes(made)


def plain(data: Any) -> Any:
    """Data as what == compares."""
    if isinstance(data, np.ndarray):
        return str(data.dtype), data.shape, data.tobytes()
    if isinstance(data, dict):
        return [(key, plain(value)) for key, value in data.items()]
    if isinstance(data, tuple | list):
        return [plain(value) for value in data]
    return plain(vars(data)) if hasattr(data, "__dict__") else data


def written(files: dict[str, bytes], folder: Path) -> Path:
    """The files in a folder that holds nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(case: Case, files: dict[str, bytes], folder: Path) -> tuple[Any, Exception | None]:
    """What a reader makes of files: data or its refusal.

    Raises:
      AssertionError: a refusal that does not name its file, or not in one line.
      Exception: whatever else a reader raises.
    """
    try:
        return case.reader.read(written(files, folder)), None
    except (ValueError, OSError) as error:
        refusal = error
    said = str(refusal)
    assert str(folder) in said, f"names no file: {refusal!r}"
    assert len(said.splitlines()) == 1, f"several lines: {refusal!r}"
    assert len(said) < LINE, f"{len(said)} characters: {said[:200]}"
    return None, refusal


def trial(case: Case, right: Any, rng: random.Random, folder: Path) -> str:
    """One of OUTCOMES but the last.

    Args:
      case: which files.
      right: what they hold, as `plain` makes it.
      rng: of the damage.
      folder: to write to.

    Raises:
      Exception: what should not be.
    """
    inside = rng.random() < 0.4
    files = case.reader.files if inside else case.pack(case.reader.files)
    name = rng.choice(sorted(files))
    hurt = {**files, name: damaged(files[name], rng)}
    data, refusal = read(case, case.pack(hurt) if inside else hurt, folder)
    if inside and case.packing and case.reader.plain:
        unpacked, other = read(case, hurt, folder)
        assert (refusal is None) == (other is None), f"packed: {refusal!r}; unpacked: {other!r}"
        assert plain(data) == plain(unpacked), "other data than of the same files unpacked"
    if refusal is not None:
        return "refused"
    if plain(data) == right:
        return "right"
    contents = hurt
    if case.packing and not inside:
        assert not case.checked, "other data, behind a checksum"
        assert not files[name].startswith(hurt[name]), "other data, of an archive that is cut off"
        contents = {}
        for content in hurt.values():
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                contents |= {member.name: archive.extractfile(member).read() for member in archive}  # pyright: ignore
        headers = sum(content.count(b"ustar") for content in hurt.values())
        assert len(contents) == headers, f"{len(contents)} members, of {headers}"
        assert plain(data) == plain(read(case, contents, folder)[0]), "other data than of what tarfile takes out"
    case.reader.check(contents, data)
    return "changed"


def work(seed: int, first: int, last: int) -> Iterator[dict[str, Any]]:
    """The trials of these numbers, in this process, within bounds of memory and time."""
    every = cases()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "files"
        right = [plain(case.reader.read(written(case.pack(case.reader.files), folder))) for case in every]
        for number in range(first, last):
            case = every[number % len(every)]
            found = {"number": number, "reader": case.reader.name, "packing": case.packing, "error": ""}
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                found["outcome"] = trial(case, right[number % len(every)], random.Random(f"{seed} {number}"), folder)
            except Exception as error:
                found |= {"outcome": "failed", "error": f"{type(error).__name__}: {error}"[:500]}
                found["traceback"] = traceback.format_exc()
            faulthandler.cancel_dump_traceback_later()
            before, peak = peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if (peak - before) * 1024 > MEMORY:
                found |= {"outcome": "failed", "error": f"{(peak - before) >> 10} MiB"}
            yield found


def fuzz(trials: int, seed: int = 0) -> dict[str, Any]:
    """Damaged files to all readers, in processes of their own.

    Returns:
      "readers": how many trials of each reader had each of OUTCOMES; "failures": of each that failed its number, the
      reader, the packing, the error and where there is one the traceback; "seconds" in all.
    """
    counts: dict[str, Counter[str]] = {}
    failures: list[dict[str, Any]] = []
    first, begin = 0, time.monotonic()
    while first < trials:
        command = [sys.executable, __file__, f"--seed={seed}", f"--work={first}", str(trials)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": ROOT}, **pipes) as process:
            assert process.stdout
            assert process.stderr
            for line in process.stdout:
                found = json.loads(line)
                first = found["number"] + 1
                counts.setdefault(found["reader"], Counter())[found["outcome"]] += 1
                if found["outcome"] == "failed":
                    failures.append(found)
            ended = process.stderr.read()
        if first < trials:  # it crashed, or took too long
            failures.append({"number": first, "reader": "?", "packing": "?", "error": ended[-3000:]})
            first += 1
            if len(failures) > 20:
                break
    return {"readers": counts, "failures": failures, "seconds": time.monotonic() - begin}


def table(found: dict[str, Any]) -> str:
    """The counts as Markdown."""
    rows = [f"| reader | {' | '.join(OUTCOMES)} |", "|---|---|---|---|---|"]
    rows += [
        f"| {name} | {' | '.join(str(count[one]) for one in OUTCOMES)} |" for name, count in found["readers"].items()
    ]
    total = sum(found["readers"].values(), Counter())
    rows.append(f"| all | {' | '.join(str(total[one]) for one in OUTCOMES)} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("trials", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", type=int, help="the number of the first trial, of which the traceback is wanted")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work is not None:
        for found in work(given.seed, given.work, given.trials):
            print(json.dumps(found), flush=True)
        return 0
    if given.at is not None:
        for found in work(given.seed, given.at, given.at + given.trials):
            print(found.pop("traceback", ""), found)
        return 0
    found = fuzz(given.trials, given.seed)
    print(table(found))
    for failure in found["failures"]:
        print("{number} {reader} {packing}: {error}".format(**failure))
    print(f"{given.trials} trials of seed {given.seed}, {len(found['failures'])} failed, {found['seconds']:.0f} s")
    return bool(found["failures"])


if __name__ == "__main__":
    sys.exit(main())
