"""Runs whose process was killed are ended in Dagster within a minute; those at work, and other machines', are left alone."""

from __future__ import annotations

import os
import socket
from datetime import date
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from cio_pipeline.defs.dead_runs import FOLDER, GONE, RunLock, customerio_dead_runs
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.tables.files import StorageError


@pytest.fixture
def data_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name, value in Sandbox("http://127.0.0.1:1", "http://127.0.0.1:1").environment(tmp_path, date(2025, 1, 1)).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def started(instance: dg.DagsterInstance, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED) -> str:
    return create_run_for_test(instance, job_name="customerio_sync", status=status).run_id


def killed(data_dir: Path, run_id: str) -> None:
    """The process of a run ended with the lock, as the system closes what it had open."""
    os.close(RunLock(str(data_dir), run_id)._opened)


def tick(instance: dg.DagsterInstance) -> str:
    said = customerio_dead_runs(dg.build_sensor_context(instance))
    assert isinstance(said, dg.SkipReason)
    return str(said.skip_message)


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_run_that_is_at_work_is_left_and_ended_when_it_is_killed(data_dir: Path, instance: dg.DagsterInstance) -> None:
    run_id = started(instance)
    lock = RunLock(str(data_dir), run_id)
    assert tick(instance) == "No run's process is gone."
    assert status(instance, run_id) == dg.DagsterRunStatus.STARTED
    os.close(lock._opened)
    assert run_id in tick(instance)
    assert status(instance, run_id) == dg.DagsterRunStatus.FAILURE
    assert GONE in [entry.message for entry in instance.all_logs(run_id)]
    assert tick(instance) == "No run's process is gone."


def test_a_killed_run_that_was_being_terminated_is_canceled(data_dir: Path, instance: dg.DagsterInstance) -> None:
    run_id = started(instance, dg.DagsterRunStatus.CANCELING)
    killed(data_dir, run_id)
    tick(instance)
    assert status(instance, run_id) == dg.DagsterRunStatus.CANCELED


def test_a_run_that_has_ended_stays_as_it_ended(data_dir: Path, instance: dg.DagsterInstance) -> None:
    run_id = started(instance, dg.DagsterRunStatus.SUCCESS)
    killed(data_dir, run_id)
    tick(instance)
    assert status(instance, run_id) == dg.DagsterRunStatus.SUCCESS
    assert list((data_dir / FOLDER).iterdir()) == []


def test_a_run_of_another_machine_is_left(
    data_dir: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = started(instance)
    killed(data_dir, run_id)
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    tick(instance)
    assert status(instance, run_id) == dg.DagsterRunStatus.STARTED


def test_a_lock_goes_when_its_run_ends(tmp_path: Path) -> None:
    lock = RunLock(str(tmp_path), "a-run")
    assert [file.name for file in (tmp_path / FOLDER).iterdir()] == ["a-run"]
    lock.release()
    assert list((tmp_path / FOLDER).iterdir()) == []
    RunLock("s3://bucket/folder", "a-run").release()


def test_settings_that_are_missing_are_said(instance: dg.DagsterInstance) -> None:
    assert "CUSTOMERIO" in tick(instance)


def test_a_folder_that_cannot_be_written_is_said_by_its_name(data_dir: Path) -> None:
    (data_dir / FOLDER).write_text("")
    with pytest.raises(StorageError, match=rf"^The folder .*{FOLDER} \(CIO_DATA_DIR\) cannot be written: "):
        RunLock(str(data_dir), "a-b")


def test_a_file_that_a_run_is_about_to_lock_is_left(data_dir: Path, instance: dg.DagsterInstance) -> None:
    (data_dir / FOLDER).mkdir()
    new = data_dir / FOLDER / "a-b.new"
    new.write_text("")
    tick(instance)
    assert new.exists()
