"""Temporary files with people's data do not outlive their use."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cio_pipeline.spill import spill_folder


def test_what_a_killed_run_spilled_goes_after_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, new, foreign = (
        tmp_path / name for name in ("cio_pipeline_spill_left", "cio_pipeline_spill_new", "cio_pipeline_other")
    )
    for folder in (left, new, foreign):
        folder.mkdir()
        (folder / "0000.parquet").touch()
    (tmp_path / "cio_pipeline_spill_file").touch()
    for old in (left, foreign, tmp_path / "cio_pipeline_spill_file"):
        os.utime(old, (0, 0))
    with spill_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {path.name for path in tmp_path.iterdir()} == {new.name, foreign.name, folder.name}
    assert not folder.exists()
