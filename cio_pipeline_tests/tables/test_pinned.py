"""Pinned tables: a run reads each partition in the version that it has read first."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from cio_pipeline.tables.files import StorageError
from cio_pipeline.tables.overlay import OverlayTables
from cio_pipeline.tables.pinned import PinnedTables
from cio_pipeline.tables.tables import Tables
from cio_pipeline_tests.tables.test_tables import DAY, GROUP, numbers, only_file, write_all


@pytest.mark.parametrize("root", ["folder", "memory://pinned"])
def test_all_tables_of_a_group_stay_as_they_were_when_any_was_first_asked_for(tmp_path: Path, root: str) -> None:
    tables = Tables(root if "://" in root else str(tmp_path / root))
    write_all(tables, 2)
    pinned = PinnedTables(tables)
    assert pinned.version("customers", DAY).rows == 2
    write_all(tables, 3)
    assert (numbers(pinned), numbers(tables)) == ([[2, 2]] * 3, [[3, 3, 3]] * 3)
    assert numbers(pickle.loads(pickle.dumps(pinned))) == [[2, 2]] * 3
    assert all(pinned.is_intact(name, DAY) for name in GROUP)


def test_what_was_not_there_at_first_is_not_there_later(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    pinned = PinnedTables(tables)
    assert pinned.find_version("events", DAY) is None
    write_all(tables, 2)
    assert pinned.find_version("customers", DAY) is None


def test_a_version_that_is_gone_or_broken_is_named_with_what_to_do(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    write_all(tables, 2)
    pinned = PinnedTables(tables)
    assert pinned.version("events", DAY).rows == 2
    only_file(tmp_path, "customers-0000.parquet").unlink()
    again = f"Shard 0 of customers of {DAY} cannot be read (No such file or directory)"
    for remedy in (
        f"materialize customers for {DAY} again.",
        "another run has replaced it since this one began, so run this again.",
    ):
        with pytest.raises(StorageError) as failed:
            numbers(pinned)
        assert str(failed.value) == f"{again}: {remedy}"
        write_all(tables, 3)
    only_file(tmp_path, "current.json").write_text("{")
    with pytest.raises(StorageError, match=r"materialize customers for 2026-03-02 again\.$"):
        numbers(pinned)


def test_an_overlay_has_the_version_of_its_base_that_it_has_read_until_it_writes_its_own(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path / "base"))
    write_all(tables, 2)
    overlay = OverlayTables(str(tmp_path / "overlay"), PinnedTables(tables))
    assert overlay.version("customers", DAY).rows == 2
    write_all(tables, 3)
    assert numbers(overlay) == [[2, 2]] * 3
    shutil.rmtree(tmp_path / "base" / "derived" / DAY / overlay.version("customers", DAY).name)
    with pytest.raises(StorageError, match=r"another run has replaced it since this one began, so run this again\.$"):
        list(overlay.read("customers", DAY))
    write_all(overlay, 4)
    assert (numbers(overlay), numbers(tables)) == ([[4] * 4] * 3, [[3] * 3] * 3)
