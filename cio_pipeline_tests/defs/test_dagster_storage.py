"""Dagster's SQLite storage, with one engine a database."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage

from cio_pipeline.defs import dagster_storage
from cio_pipeline.defs.resources import prepare_process
from cio_pipeline.settings.environment import KEEP_ENGINES

FEW_CONNECTIONS = 3


@dg.asset
def nothing() -> None:
    """Nothing."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The database of each engine that is made."""
    urls: list[str] = []
    create = sa.create_engine

    def noted(url: str, **options: object) -> sa.Engine:
        urls.append(url)
        return create(url, **options)

    monkeypatch.setattr("sqlalchemy.create_engine", noted)
    for module in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
        monkeypatch.setattr(module, "create_engine", noted)  # ours when the test ends, whatever it set
    monkeypatch.setattr(ScriptDirectory, "from_config", dagster_storage._FROM_CONFIG)  # Alembic's, whatever ran before
    return urls


def stored(home: Path) -> list[str]:
    """Runs the asset in a new instance; gives the events as they stand in its database."""
    home.mkdir()
    with dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}}) as instance:
        run = dg.materialize([nothing], instance=instance)
        return [entry.dagster_event.event_type_value for entry in instance.all_logs(run.run_id) if entry.dagster_event]


def test_dagster_still_makes_an_engine_for_each_event_that_it_stores(made: list[str], tmp_path: Path) -> None:
    stored(tmp_path / "home")
    assert len(made) > 10 * len(set(made))


def test_with_kept_engines_it_makes_one_a_database_and_stores_the_same_events(made: list[str], tmp_path: Path) -> None:
    without = stored(tmp_path / "without")
    made.clear()
    dagster_storage.keep_engines()
    assert stored(tmp_path / "with") == without
    assert len(made) == len(set(made))


@pytest.mark.parametrize("is_own", [False, True])
def test_a_run_may_open_many_files_and_patches_dagster_only_under_this_packages_own_commands(
    made: list[str], monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    monkeypatch.setenv(KEEP_ENGINES, "yes" if is_own else "no")
    limits: list[str] = []
    monkeypatch.setattr("cio_pipeline.defs.resources.allow_open_files", lambda: limits.append("raised"))
    prepare_process()
    assert limits == ["raised"]
    assert (sqlite_event_log.create_engine is dagster_storage._engine) == is_own  # type: ignore[attr-defined]
    assert (ScriptDirectory.from_config is dagster_storage._scripts) == is_own


def test_with_kept_engines_each_database_is_opened_but_a_few_times(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Counter[object] = Counter()
    connect = sqlite3.dbapi2.connect

    def noted(database: str, **options: object) -> object:
        opened[database] += 1
        return connect(database, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("sqlite3.dbapi2.connect", noted)
    dagster_storage.keep_engines()
    stored(tmp_path / "home")
    assert opened
    assert max(opened.values()) <= FEW_CONNECTIONS


def test_with_kept_engines_its_migrations_are_loaded_once_and_new_databases_are_of_the_same_version(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load = ScriptDirectory._load_revisions

    def noted(self: ScriptDirectory) -> object:
        loaded.append(self.dir)
        return load(self)

    monkeypatch.setattr(ScriptDirectory, "_load_revisions", noted)
    stored(tmp_path / "without")
    assert len(loaded) > 2 * len(set(loaded))
    loaded.clear()
    dagster_storage.keep_engines()
    dagster_storage._kept_scripts.cache_clear()
    stored(tmp_path / "with")
    stored(tmp_path / "again")
    assert len(loaded) == len(set(loaded))
    assert versions(tmp_path / "with") == versions(tmp_path / "again") == versions(tmp_path / "without") != {}


def versions(home: Path) -> dict[str, str]:
    """The version in each of an instance's databases but those of runs, whose names are their own."""
    found = {}
    for file in home.rglob("*.db"):
        with sqlite3.connect(file) as database:
            name = file.name if file.name in ("runs.db", "index.db", "schedules.db") else "a run's"
            [[found[name]]] = database.execute("SELECT version_num FROM alembic_version")
    return found
