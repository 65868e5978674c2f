"""Temporary files: a file appears whole or not at all, and what killed processes leave does not add up."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smh.files import atomic
from smh.files.atomic import replacing

pytest.importorskip("fcntl", reason="signals, locks and limits of POSIX")

ROOT = Path(__file__).parent.parent.parent
ABANDONED = ".smh-0123456789abcdef.tmp"
OPEN = """
import sys
from smh.files.atomic import replacing
with replacing(sys.argv[1]) as temporary:
    print("open", flush=True)
    sys.stdin.readline()
    open(temporary, "w").write("from a process")
"""

# --- The folder of a temporary file


@pytest.fixture
def abandoned(tmp_path):
    """A folder as a killed process leaves it."""
    folder = tmp_path / ABANDONED
    folder.mkdir(0o700)
    (folder / "lock").touch()
    (folder / "file").write_bytes(b"half")
    (folder / ".tmpAbCdEf").write_bytes(b"of a serialiser")
    return folder


def save(path, text="new"):
    with replacing(path) as temporary:
        Path(temporary).write_text(text)


def test_what_a_killed_process_left_is_removed_before_anything_is_written(abandoned, tmp_path):
    with replacing(tmp_path / "x") as temporary:
        assert not abandoned.exists()
        assert os.listdir(tmp_path) == [os.path.basename(os.path.dirname(temporary))]
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("contents", [[], ["lock"], ["file"]])
def test_also_where_it_was_killed_at_once(tmp_path, contents):
    (tmp_path / ABANDONED).mkdir(0o700)
    for name in contents:
        (tmp_path / ABANDONED / name).touch()
    save(tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]


def test_what_is_in_use_stays(tmp_path):
    with replacing(tmp_path / "x") as outer:
        Path(outer).write_text("outer")
        save(tmp_path / "x", "inner")
        save(tmp_path / "y")
        assert (tmp_path / "x").read_text() == "inner"
        assert Path(outer).read_text() == "outer"
    assert (tmp_path / "x").read_text() == "outer"
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


def test_what_another_process_uses_stays_until_that_is_killed(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, str(tmp_path / "x")],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    try:
        assert [process.stdout.readline() for process in processes] == [b"open\n"] * 2
        save(tmp_path / "x")
        assert len(os.listdir(tmp_path)) == 3
        processes[0].kill()
        processes[0].wait()
        save(tmp_path / "y")
        assert len(os.listdir(tmp_path)) == 3
        processes[1].communicate(b"\n", timeout=60)
        assert processes[1].returncode == 0
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert (tmp_path / "x").read_text() == "from a process"
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


def test_what_only_looks_like_it_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("of years")
    (tmp_path / ".smh-fedcba9876543210.tmp").write_text("a file")
    (tmp_path / ".smh-0123.tmp").mkdir()
    (tmp_path / (ABANDONED + ".bak")).mkdir()
    (tmp_path / ABANDONED).symlink_to("mine")
    before = sorted(tmp_path.rglob("*"))
    save(tmp_path / "x")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "x"])
    assert (tmp_path / "mine" / "thesis").read_text() == "of years"


def test_what_a_link_within_it_points_to_stays(abandoned, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("of years")
    (abandoned / "link").symlink_to(tmp_path / "mine")
    save(tmp_path / "x")
    assert not abandoned.exists()
    assert (tmp_path / "mine" / "thesis").read_text() == "of years"


def test_a_lock_is_no_link(abandoned, tmp_path):
    (abandoned / "lock").unlink()
    (abandoned / "lock").symlink_to(tmp_path / "elsewhere")
    save(tmp_path / "x")
    assert sorted(os.listdir(tmp_path)) == [ABANDONED, "x"]


def test_what_belongs_to_somebody_else_stays(abandoned, tmp_path, monkeypatch):
    user = os.geteuid()
    monkeypatch.setattr(atomic.os, "geteuid", lambda: user + 1)
    save(tmp_path / "x")
    assert abandoned.exists()
    assert (tmp_path / "x").read_text() == "new"


def test_without_locks_files_are_written_and_nothing_is_removed(abandoned, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(atomic.fcntl, "flock", no_locks)
    save(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == [ABANDONED, "x"]


@pytest.mark.parametrize("call", ["mkdir", "open", "flock"])
def test_a_folder_that_is_taken_for_abandoned_before_it_is_locked_is_made_anew(tmp_path, monkeypatch, call):
    module = atomic.fcntl if call == "flock" else atomic.os
    plain, taken = getattr(module, call), []

    def and_taken(*arguments, **named):
        result = None if call == "flock" else plain(*arguments, **named)
        if not taken:
            taken.append(call)
            atomic._remove_abandoned(str(tmp_path))  # another process that saves at this moment
            assert not os.listdir(tmp_path)
        return plain(*arguments, **named) if call == "flock" else result

    monkeypatch.setattr(module, call, and_taken)
    save(tmp_path / "x")
    assert taken
    assert (tmp_path / "x").read_text() == "new"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("fails", [True, False])
def test_what_a_block_puts_beside_its_file_is_removed(tmp_path, fails):
    def block():
        with replacing(tmp_path / "x") as temporary:
            Path(temporary).with_name("scratch").write_text("?")
            if fails:
                raise RuntimeError("broken")

    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            block()
    else:
        block()
    assert os.listdir(tmp_path) == ([] if fails else ["x"])


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "something that nobody knows")

    monkeypatch.setattr(atomic.os, "mkdir", denied)
    with pytest.raises(PermissionError) as caught:
        save(tmp_path / "x")
    assert caught.value.filename == str(tmp_path)
