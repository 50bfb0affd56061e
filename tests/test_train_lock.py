"""One writer for a directory, with real processes."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from seqjax.train import InUse, Run
from seqjax.train import lock as lock_module
from seqjax.train.lock import Lock
from seqjax.train.lock import holder as holder_of

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from seqjax.train.lock import Lock
lock = Lock.take(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def owner(directory):
    return json.loads((directory / ".lock").read_text() or "{}")


def leave(directory, **who):
    """What a process leaves behind that did not release its lock."""
    (directory / ".lock").write_text(json.dumps({"process": 1, "host": "elsewhere", "since": "then", **who}))


def test_the_second_process_is_told_who_holds_the_lock(tmp_path, holder):
    host, since = owner(tmp_path)["host"], owner(tmp_path)["since"]
    with pytest.raises(InUse) as error:
        Lock.take(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} is in use by process {holder.pid} on {host} since {since};"
        f" wait until it ends, or end it: kill {holder.pid}"
    )


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert owner(tmp_path)["process"] == holder.pid
    Lock.take(tmp_path).release()


def test_the_lock_of_a_stopped_process_is_not(tmp_path, holder):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(InUse, match=f"process {holder.pid} .* or end it: kill -KILL {holder.pid}$"):
        Lock.take(tmp_path)


def test_a_process_that_is_ending_is_waited_for(tmp_path, holder):
    threading.Timer(1, holder.kill).start()
    Lock.take(tmp_path, wait=20).release()


def test_one_process_takes_it_again_and_gives_it_back_as_often(tmp_path):
    first, second = Lock.take(tmp_path), Lock.take(tmp_path)
    assert first is second
    assert owner(tmp_path)["process"] == os.getpid()
    first.release()
    first.check()
    assert taken_elsewhere(tmp_path) != 0
    second.release()
    assert owner(tmp_path) == {}
    assert taken_elsewhere(tmp_path) == 0


def taken_elsewhere(directory):
    """The exit code of another process that takes the lock."""
    code = "import sys; from seqjax.train.lock import Lock; Lock.take(sys.argv[1])"
    return subprocess.run([sys.executable, "-c", code, directory], cwd=ROOT, stderr=subprocess.DEVNULL).returncode


def test_a_fork_does_not_have_the_lock_of_its_parent(tmp_path):
    code = """
import os, sys
from seqjax.train.lock import InUse, Lock
held = Lock.take(sys.argv[1])
child = os.fork()
if child == 0:
    try:
        Lock.take(sys.argv[1])
    except InUse:
        os._exit(7)
    os._exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
held.check()
sys.exit(status)
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT).returncode == 7


def test_a_program_that_inherited_the_lock_is_named(tmp_path):
    code = HOLD.replace("take(sys.argv[1])", "take(sys.argv[1], inherited=True)").replace(
        "time.sleep(60)", "import subprocess; subprocess.Popen(['sleep', '60'], close_fds=False)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    gone = owner(tmp_path)["process"]
    with pytest.raises(InUse, match=f"is in use by what process {gone} started and left behind; wait") as error:
        Lock.take(tmp_path)
    left = int(str(error.value).split("or end it: kill ")[1])
    assert Path(f"/proc/{left}/cmdline").read_bytes() == b"sleep\x0060\x00"
    os.kill(left, signal.SIGKILL)
    while Path(f"/proc/{left}/fd").exists() and list(Path(f"/proc/{left}/fd").iterdir()):
        time.sleep(0.01)
    Lock.take(tmp_path).release()


def test_a_zombie_holds_nothing(tmp_path):
    with open(tmp_path / ".lock", "w") as lock:
        os.set_inheritable(lock.fileno(), True)
        child = subprocess.Popen(["true"], close_fds=False)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert lock_module._open_in(tmp_path / ".lock") == []
        child.wait()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock_module, "PATIENCE", 1.5)
    monkeypatch.setattr(lock_module, "BEAT", 0.3)


def test_the_lock_of_a_dead_host_is_taken_after_a_while(tmp_path, impatient, capsys):
    leave(tmp_path)
    Lock.take(tmp_path).release()
    assert f"{tmp_path / '.lock'} was left by process 1 on elsewhere: waiting 2 s" in capsys.readouterr().err


def test_the_lock_of_a_host_that_still_touches_it_is_not(tmp_path, impatient):
    leave(tmp_path)
    beat = f"while sleep 0.3; do touch {tmp_path / '.lock'}; done"
    with subprocess.Popen(beat, shell=True, start_new_session=True) as other:
        try:
            with pytest.raises(InUse, match="is in use by process 1 on elsewhere since then; wait"):
                Lock.take(tmp_path)
        finally:
            os.killpg(other.pid, signal.SIGKILL)
    assert owner(tmp_path)["host"] == "elsewhere"


def test_a_holder_touches_its_lock(tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(lock_module, "_beating", [])
    held = Lock.take(tmp_path)
    os.utime(tmp_path / ".lock", (0, 0))
    end = time.monotonic() + 20
    while (tmp_path / ".lock").stat().st_mtime == 0:
        assert time.monotonic() < end, "nobody touched it"
        time.sleep(0.05)
    held.release()


def test_a_lock_is_touched_while_another_one_is_waited_for(tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(lock_module, "_beating", [])
    (tmp_path / "own").mkdir()
    held = Lock.take(tmp_path / "own")
    leave(tmp_path)
    os.utime(tmp_path / "own" / ".lock", (0, 0))
    taken = []
    waiting = threading.Thread(target=lambda: taken.append(Lock.take(tmp_path)))
    waiting.start()
    time.sleep(1)
    assert waiting.is_alive()
    assert (tmp_path / "own" / ".lock").stat().st_mtime > 0
    waiting.join()
    taken[0].release()
    held.release()


def refuse(number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    return flock


def test_a_file_system_without_locks(tmp_path, impatient, monkeypatch):
    """Then the content of the file and its touches decide, on one host too."""
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    Lock.take(tmp_path).release()
    leave(tmp_path, host=os.uname().nodename)
    Lock.take(tmp_path).release()
    with subprocess.Popen(
        f"while sleep 0.3; do touch {tmp_path / '.lock'}; done", shell=True, start_new_session=True
    ) as other:
        leave(tmp_path, host=os.uname().nodename)
        try:
            with pytest.raises(InUse):
                Lock.take(tmp_path)
        finally:
            os.killpg(other.pid, signal.SIGKILL)


def test_without_locks_the_later_of_two_that_start_at_once_has_it(tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    monkeypatch.setattr(time, "sleep", lambda seconds: leave(tmp_path, process=2) if seconds == 1 else None)
    with pytest.raises(InUse, match="process 2 on elsewhere"):
        Lock.take(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", "\0" * 100, '{"process": "x"}', "1"])
def test_a_damaged_lock_file_is_free(tmp_path, content, impatient):
    (tmp_path / ".lock").write_text(content)
    Lock.take(tmp_path).release()


def test_other_errors_name_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(OSError, match=r"Input/output error: '.*\.lock'"):
        Lock.take(tmp_path)
    with pytest.raises(FileNotFoundError):
        Lock.take(tmp_path / "missing")


def test_a_lock_that_was_lost_is_noticed(tmp_path):
    held = Lock.take(tmp_path)
    leave(tmp_path)
    with pytest.raises(InUse, match="process 1 on elsewhere"):
        held.check()
    (tmp_path / ".lock").unlink()
    with pytest.raises(InUse, match=f"{tmp_path} was removed or replaced while process {os.getpid()} wrote to it"):
        held.check()
    held.release()


# Runs


def test_a_run_is_written_to_by_one_process_until_it_is_closed(tmp_path):
    run = Run.open(tmp_path, {"seed": 0})
    assert taken_elsewhere(tmp_path) != 0
    run.close()
    assert taken_elsewhere(tmp_path) == 0
    for write in (lambda: run.log({"step": 1}), run.mark, run.rewind, lambda: run.finish({}), lambda: run.fail("")):
        with pytest.raises(ValueError, match="is not open to be written"):
            write()
    run.close()


def test_a_run_that_nobody_refers_to_is_closed(tmp_path):
    Run.open(tmp_path, {"seed": 0})
    assert taken_elsewhere(tmp_path) == 0


def test_a_run_that_cannot_be_opened_is_not_locked(tmp_path):
    Run.open(tmp_path, {"seed": 0}).close()
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(FileExistsError):
        Run.open(tmp_path, {"seed": 0})
    assert taken_elsewhere(tmp_path) == 0


def test_a_finished_run_is_opened_without_a_lock_and_without_a_change(tmp_path, holder):
    (tmp_path / "config.json").write_text('{"flags": {"seed": 0}}')
    (tmp_path / "result.json").write_text('{"loss": 1.0}')
    (tmp_path / "error.txt").write_text("before")
    before = sorted(tmp_path.iterdir())
    run = Run.open(tmp_path, {"seed": 0})
    assert run.result() == {"loss": 1.0}
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ValueError, match="seed: given 1, found 0"):
        Run.open(tmp_path, {"seed": 1})


def test_a_run_whose_directory_was_replaced_does_not_write_a_checkpoint(tmp_path):
    run = Run.open(tmp_path / "run", {"seed": 0})
    (tmp_path / "run").rename(tmp_path / "moved")
    Run.open(tmp_path / "run", {"seed": 1})
    with pytest.raises(InUse):
        run.mark()


def test_who_holds_a_lock_is_seen_from_outside(tmp_path, holder):
    before = (tmp_path / ".lock").stat().st_mtime_ns
    assert holder_of(tmp_path) == owner(tmp_path)
    assert holder_of(tmp_path)["process"] == holder.pid
    holder.kill()
    holder.wait()
    assert holder_of(tmp_path) is None
    assert (owner(tmp_path)["process"], (tmp_path / ".lock").stat().st_mtime_ns) == (holder.pid, before)


def test_looking_for_a_holder_takes_and_creates_nothing(tmp_path):
    assert holder_of(tmp_path) is None
    assert not list(tmp_path.iterdir())
    held = Lock.take(tmp_path)
    assert holder_of(str(tmp_path))["process"] == os.getpid()
    held.release()
    assert holder_of(tmp_path) is None
    Lock.take(tmp_path, wait=0).release()


def test_another_host_holds_a_lock_for_as_long_as_it_touches_it(tmp_path, monkeypatch):
    leave(tmp_path)
    assert holder_of(tmp_path) == owner(tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    assert holder_of(tmp_path)["host"] == "elsewhere"
    os.utime(tmp_path / ".lock", (0, 0))
    assert holder_of(tmp_path) is None
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        holder_of(tmp_path)
