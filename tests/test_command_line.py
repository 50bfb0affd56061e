"""Command lines as nobody should type them, signals, and outputs that cannot be written: one line and an exit code."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_experiment as toy

import launch
from experiments.harness import command, ending, flags, report, sweep
from experiments.harness.experiment import define

ROOT = Path(__file__).parents[1]


def refused(capsys, *arguments, experiment="toy_experiment") -> str:
    """The line with which launch.py refuses arguments."""
    assert launch.main([f"--experiment={experiment}", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err[:11]) == ("", 1, "launch.py: "), err
    return err[11:-1]


# ---- flagfiles


def test_flagfiles_are_read_where_they_stand_one_in_the_other(tmp_path):
    (tmp_path / "outer").write_text(
        f"\ufeff# a comment\n--steps=3\n\n// another\n--flagfile={tmp_path}/inner\n--seed=1\n"
    )
    (tmp_path / "inner").write_text("--truncation=é # no comment\r\n")
    expected = ["--a", "--steps=3", "--truncation=é # no comment", "--seed=1", "--b", "--", "--flagfile=x"]
    assert command.arguments(["--a", "--flagfile", f"{tmp_path}/outer", "--b", "--", "--flagfile=x"]) == expected
    assert command.arguments([f"-flagfile={tmp_path}/inner"]) == expected[2:3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("directory", "it is not a regular file"),
        ("fifo", "it is not a regular file"),
        (b"--steps=5\n\xff\xfe\x00\x80", "expected flags in UTF-8, one a line; its bytes are no text"),
        (b"--seed=1\n" * 150_000, "expected at most 1,048,576 bytes of flags, it has more"),
        (b"--flagfile=FILE", "it is already being read, by itself or by another flagfile"),
    ],
)
def test_what_is_no_flagfile_is_named_at_once(content, message, tmp_path, capsys):
    file = tmp_path / "flags"
    if content == "directory":
        file.mkdir()
    elif content == "fifo":
        os.mkfifo(file)
    elif content is not None:
        file.write_bytes(content.replace(b"FILE", bytes(file)))
    assert refused(capsys, f"--flagfile={file}") == f"--flagfile={file}: {message}"


def test_a_file_without_an_end_is_no_flagfile(capsys):
    assert refused(capsys, "--flagfile=/dev/zero") == "--flagfile=/dev/zero: it is not a regular file"


def test_what_no_flag_can_hold_is_refused(tmp_path, capsys):
    (tmp_path / "flags").write_text("--truncation=a\0b")
    message = "expected text in UTF-8 without NUL"
    assert refused(capsys, f"--flagfile={tmp_path / 'flags'}") == f"argument '--truncation=a\\\\x00b': {message}"
    assert message in refused(capsys, os.fsdecode(b"--truncation=\xff"))


# ---- experiments


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../x", "no experiment '../../x'; expected one of "),
        (".os", "no experiment '.os'; expected one of "),
        ("..", "no experiment '..'; expected one of "),
        ("toy_experiment.x", "experiment 'toy_experiment.x'"),
        ("a\nb", r"no experiment 'a\\nb'; expected one of "),
        ("x" * 5000, "... (5,000 characters)'; expected one of "),
        ("__main__", "no experiment '__main__'; expected one of "),
        ("experiments", "no experiment 'experiments'; expected one of "),
        ("temperature.py", "no experiment 'temperature.py' (give the name alone: temperature); expected one of "),
        ("experiments/ball.py", "no experiment 'experiments/ball.py' (give the name alone: ball); expected one of "),
    ],
)
def test_names_that_are_no_experiment(name, message, capsys):
    assert message in refused(capsys, experiment=name)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_like_it", "cannot be imported: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("x = (", "cannot be imported: SyntaxError: "),
        ("raise SystemExit(0)", "cannot be imported: SystemExit: 0"),
        ("SWEEP = 'seed=0'", "lacks FLAGS, TRACED_FLAGS, build, report: see experiments/harness/experiment.py"),
    ],
)
def test_modules_that_are_no_experiment(source, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "half_an_experiment.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "half_an_experiment", raising=False)
    assert message in refused(capsys, experiment="half_an_experiment")


# ---- sizes of sweeps


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("seed=0:100000", "100,000"),
        ("seed=0:2000000000", "2,000,000,000"),
        ("steps=1:10000000000000000000000", "more than 10^15"),
        (f"steps=1:{'9' * 999};batch_size=1:{'9' * 999};evaluate_every=0:{'9' * 999}", "more than 10^15"),
        ("seed=0:100;steps=1:100;batch_size=1:3", "19,800"),
        ("seed=0:5000,5000:10001", "10,001"),
    ],
)
def test_sweeps_of_more_than_the_stated_number_of_runs_are_refused_at_once(text, number, capsys):
    start = time.monotonic()
    assert refused(capsys, f"--sweep={text}") == (
        f"the sweep has {number} runs, expected at most 10,000; launch parts of it"
    )
    assert time.monotonic() - start < 2


def test_as_many_runs_as_stated_are_seen_in_no_time():
    start = time.monotonic()
    axes = sweep.parse(f"seed=0:{sweep.MOST_RUNS}", toy.FLAGS)
    assert len(sweep.expand(axes)) == sweep.MOST_RUNS == 10_000
    with pytest.raises(ValueError, match="sweep axis seed: value 9998 is repeated"):
        sweep.parse("seed=0:9999,9998", toy.FLAGS)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("number", ["9" * 1001, "9" * 5000])
def test_a_range_with_a_bound_that_is_no_number_of_runs(number, capsys):
    message = refused(capsys, f"--sweep=seed=0:{number}")
    assert "expected an integer in the range [0, 2147483647]" in message
    assert len(message) < 300


def test_a_sweep_of_semicolons_is_a_single_run(tmp_path):
    assert [member.name for member in sweep.plan(define(toy), " ;;; ", {}, tmp_path).members] == ["run"]


# ---- places


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", " is not a directory; choose another"),
        ("file/below", ": Not a directory; expected a directory, or a name for one"),
        ("dangling", " is a symbolic link that leads nowhere; expected a directory"),
        ("loop", " is a symbolic link that leads nowhere; expected a directory"),
        ("loop/below", ": Too many levels of symbolic links; expected a directory, or a name for one"),
        ("x" * 256, ": File name too long; expected a directory, or a name for one"),
        ("/".join(["x" * 250] * 20), ": File name too long; expected a directory, or a name for one"),
    ],
)
@pytest.mark.parametrize("single", [False, True])
def test_a_workdir_that_cannot_be_one(name, message, single, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    if single:
        monkeypatch.setattr(sys, "argv", ["toy", "--seed=1", f"--workdir={tmp_path / name}"])
        with pytest.raises(SystemExit) as stop:
            command.main(toy)
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("toy_experiment: --workdir=")
        assert err.endswith(f"{message}\n")
    else:
        assert refused(capsys, f"--workdir={tmp_path / name}").endswith(message)


def test_a_workdir_is_not_empty_and_home_is_known(monkeypatch, tmp_path, capsys):
    assert refused(capsys, "--workdir=") == "--workdir is empty; expected a directory"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert sweep.plan(define(toy), "seed=0", {}, "~/x").directory == tmp_path / "x"
    assert sweep.plan(define(toy), "seed=0", {}, "x").directory == tmp_path / "x"


# ---- signals


@pytest.mark.parametrize("arguments", [["launch.py"], ["-m", "experiments.temperature"]])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_jax_is_imported(arguments, number, code, tmp_path):
    # A package that takes its time stands in for the seconds of the real one, so that the signal comes in between. Not
    # in one sleep: a signal just before it would be heard after it.
    slow = "import time\nprint('importing', flush=True)\nfor _ in range(600):\n    time.sleep(0.1)\n"
    (tmp_path / "jax.py").write_text(slow)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, **pipes)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, "interrupted; the same command resumes\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_sweep_is_planned(number, code, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(flags, "parse", lambda *_: os.kill(os.getpid(), number))
    assert launch.main(["--experiment=toy_experiment", f"--workdir={tmp_path}"]) == code
    assert capsys.readouterr() == ("", "interrupted; the same command resumes\n")
    assert not list(tmp_path.iterdir())


def test_a_signal_while_the_report_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "write", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    arguments = ["--experiment=toy_experiment", "--sweep=seed=0", "--steps=10", f"--workdir={tmp_path}"]
    assert launch.main(arguments) == 130
    assert capsys.readouterr().err == "interrupted; the same command resumes\n"
    monkeypatch.undo()
    assert launch.main(arguments) == 0
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_more_signal_while_python_ends_does_not_replace_the_exit_code(number, code, tmp_path):
    lines = [
        "import os, sys",
        "from experiments.harness import ending",
        "ending.at_once()",
        "class Late:",
        "    def __del__(self, kill=os.kill, pid=os.getpid()):",
        f"        kill(pid, {int(number)})",
        "late = Late()  # collected when the handlers of Python are gone already",
        f"sys.exit(ending.exit_code('x', lambda: os.kill(os.getpid(), {int(number)})))",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "interrupted; the same command resumes\n")


def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    before = signal.getsignal(signal.SIGINT)
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert ending.exit_code("x", lambda: os.kill(os.getpid(), signal.SIGTERM) or 7) == 7
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert signal.getsignal(signal.SIGINT) is before


# ---- outputs


def test_nobody_reads_the_output():
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "launch.py", "--help"],
        cwd=ROOT,
        env=environment,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    line = "launch.py: the reader of its output is gone; interrupted; the same command resumes\n"
    assert (done.returncode, done.stderr) == (141, line)


def test_a_full_disk_under_the_output():
    code = (
        "import sys\nfrom experiments.harness import ending\nsys.exit(ending.exit_code('x', lambda: print('out') or 0))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, stdout=full, stderr=subprocess.PIPE, text=True
        )
    line = "x: No space left on device; make room; the same command resumes\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_tables_in_an_encoding_without_their_characters(monkeypatch):
    table = report.text_table([["model", "loss"], ["é", report.Mean(1.0, 0.5)]])
    output = io.TextIOWrapper(io.BytesIO(), "ascii", newline="")
    monkeypatch.setattr(sys, "stdout", output)
    assert ending.exit_code("x", lambda: print(table) or 0) == 0
    assert output.buffer.getvalue().decode("ascii").split("\n")[1:3] == ["-" * 18, "    \\xe9  1.00 +- 0.50"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("two\nlines"), 2, "x: two lines"),
        (OSError(28, "No space left on device", "/f"), 1, "x: /f: No space left on device; make room; the same comm"),
        (OSError("own words"), 1, "x: own words"),
    ],
)
def test_errors_become_one_line(error, code, line, capsys):
    def body():
        raise error

    assert ending.exit_code("x", body) == code
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        ending.exit_code("x", lambda: 1 // 0)


def test_errors_of_threads_that_outlive_a_failed_checkpoint_are_not_printed():
    lines = [
        "from experiments.harness import ending",
        "class Late:",
        "    def __init__(self, error): self.error = error",
        "    def __del__(self): raise self.error",
        "def body():",
        "    for error in (RuntimeError('Event loop is closed'), RuntimeError('another'), KeyError('a key')):",
        "        Late(error)",
        "    return 0",
        "ending.at_once()",
        "ending.exit_code('x', body)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True)
    assert "closed" not in done.stderr
    assert "RuntimeError: another" in done.stderr
    assert "KeyError: 'a key'" in done.stderr
