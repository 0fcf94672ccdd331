"""Temporary files with personal data exist as long as they are in use, and no longer."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cio_pipeline.temporary_files import no_space, spill_folder

HOLDS_ONE = """
import sys
from cio_pipeline.temporary_files import spill_folder
with spill_folder() as folder:
    (folder / "0000.arrows").write_text("rows")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_folder_of_a_killed_run_is_removed_and_other_files_are_kept(temporary: Path) -> None:
    left, foreign = temporary / "cio_pipeline_spill_left", temporary / "cio_pipeline_other"
    for folder in (left, foreign):
        folder.mkdir()
        (folder / "0000.parquet").touch()
        os.utime(folder, (0, 0))
    (temporary / "cio_pipeline_spill_link").symlink_to(foreign)
    with spill_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {path.name for path in temporary.iterdir()} == {foreign.name, folder.name, "cio_pipeline_spill_link"}
        assert (foreign / "0000.parquet").exists()
    assert not folder.exists()


def test_the_folder_of_a_running_process_is_kept_whatever_its_age_until_it_is_killed(temporary: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-c", HOLDS_ONE]
    owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert owner.stdout is not None
        held = Path(owner.stdout.readline().strip())
        os.utime(held, (0, 0))
        with spill_folder():
            assert (held / "0000.arrows").read_text() == "rows"
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    assert held.exists()
    with spill_folder():
        assert not held.exists()


def test_concurrent_runs_never_remove_each_others_folder(temporary: Path) -> None:
    lost: list[Path] = []

    def work() -> None:
        for _ in range(50):
            with spill_folder() as folder:
                (folder / "rows").write_text("rows")
                if not (folder / "rows").exists():
                    lost.append(folder)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert lost == []
    assert list(temporary.iterdir()) == []


def test_a_folder_that_was_removed_before_it_was_locked_is_created_again(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, first = fcntl.flock, [True]

    def too_late(lock: int, how: int) -> None:
        if first:
            first.clear()
            next(temporary.iterdir()).rmdir()
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with spill_folder() as folder:
        assert folder.exists()
    assert not first


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full: free some space, or set TMPDIR to a folder"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "is full"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot be written to: set TMPDIR to"),
        (OSError(errno.EIO, "Input/output error"), None),
        (ValueError("No space left on device"), None),
    ],
)
def test_a_full_temporary_folder_is_reported_with_the_remedy(temporary: Path, error: Exception, names: str | None) -> None:
    sentence = no_space(error)
    assert (sentence is None) == (names is None)
    assert names is None or (names in str(sentence) and str(temporary) in str(sentence))
