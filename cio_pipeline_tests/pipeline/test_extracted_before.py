"""A day whose export's files have not changed is not read again, and whatever may have changed is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cio_pipeline.defs import reading
from cio_pipeline.pipeline.extract import extract_day, reusable_extraction
from cio_pipeline.pipeline.extract_shard import ExtractionCounts
from cio_pipeline.posthog.exports import folder as exports
from cio_pipeline.posthog.exports.batch_export import BatchExportSource
from cio_pipeline.posthog.source import EventStream
from cio_pipeline.tables.tables import Tables

START = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=3)
END = START + timedelta(days=1)
DAY = f"{START:%Y-%m-%d}"
FILE = f"{START.isoformat()}-{END.isoformat()}.jsonl"
NEXT = f"{END.isoformat()}-{(END + timedelta(days=1)).isoformat()}.jsonl"


def line(number: int, size: int = 1) -> str:
    event = {
        "uuid": f"018f3173-7000-7421-831e-{number:012x}",
        "event": "$identify",
        "distinct_id": f"u{number}",
        "timestamp": START.isoformat(),
        "properties": {"text": "a" * size, "$set": {"plan": "pro"}},
    }
    return json.dumps(event) + "\n"


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export of the day, whose files have stamps as soon as they are written, so that no test has to wait."""
    monkeypatch.setattr(exports, "TIMESTAMP_STEP", -1_000_000_000)
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / FILE).write_text(line(1) + line(2) + line(2))
    return folder


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(str(tmp_path / "tables"))


def stream(folder: Path, start: datetime = START, **options: Any) -> EventStream:
    given: dict[str, Any] = {"late_days": 1, "allowlist": (), "attributes_from": "auto", **options}
    return BatchExportSource(str(folder), **given).events(start, start + timedelta(days=1))


def extract(folder: Path, tables: Tables, **options: Any) -> ExtractionCounts:
    return extract_day(tables, DAY, stream(folder, **options), start=START, attributes="auto", now=datetime.now(UTC))


def is_known(folder: Path, tables: Tables, **options: Any) -> bool:
    return reusable_extraction(tables, DAY, stream(folder, **options).fingerprint) is not None


def test_a_day_whose_files_are_as_they_were_is_known_with_the_same_counts(export: Path, tables: Tables) -> None:
    assert not is_known(export, tables)
    kept = extract(export, tables)
    assert reusable_extraction(tables, DAY, stream(export).fingerprint) == kept
    assert (kept.rows_read, kept.rows_written, kept.duplicates.total(), kept.identity_events, kept.has_attributes) == (
        3,
        2,
        1,
        2,
        True,
    )


def rewritten_with_the_size_and_the_time_that_it_had(folder: Path) -> None:
    before = (folder / FILE).stat()
    (folder / FILE).write_text(line(1) + line(3) + line(3))
    os.utime(folder / FILE, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (folder / FILE).stat().st_size == before.st_size


def replaced(folder: Path) -> None:
    (folder / "copy").write_text(line(1) + line(3) + line(3))
    (folder / "copy").rename(folder / FILE)


def longer(folder: Path) -> None:
    with (folder / FILE).open("a") as file:
        file.write(line(4))


def one_more(folder: Path) -> None:
    (folder / NEXT).write_text(line(5))


@pytest.mark.parametrize("change", [rewritten_with_the_size_and_the_time_that_it_had, replaced, longer, one_more])
def test_a_day_whose_files_have_changed_is_read_again(export: Path, tables: Tables, change: Callable[[Path], None]) -> None:
    extract(export, tables)
    change(export)
    assert not is_known(export, tables)


def test_a_day_of_other_settings_or_other_code_is_read_again(
    export: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(export, tables)
    assert is_known(export, tables)
    assert not is_known(export, tables, allowlist=("order",))
    assert not is_known(export, tables, attributes_from="person")
    monkeypatch.setattr("cio_pipeline.pipeline.extract._reading_code_hash", lambda: "other code")
    assert not is_known(export, tables)


def test_a_day_whose_table_is_damaged_or_gone_is_read_again(export: Path, tables: Tables, tmp_path: Path) -> None:
    extract(export, tables)
    [file] = (tmp_path / "tables").rglob("posthog_events-0000.parquet")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert not is_known(export, tables)
    file.write_bytes(content)
    assert is_known(export, tables)
    file.unlink()
    assert not is_known(export, tables)


def test_a_file_that_was_just_written_may_change_unseen_and_is_read_again(
    export: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "TIMESTAMP_STEP", 3_000_000_000)
    assert stream(export).fingerprint is None
    extract(export, tables)
    assert not is_known(export, tables)


def test_an_old_day_of_which_posthog_may_have_dropped_attributes_is_always_read(export: Path) -> None:
    old = START - timedelta(days=90)
    (export / f"{old.isoformat()}-{END.isoformat()}.jsonl").write_text("")
    assert stream(export, old).fingerprint is None
    assert stream(export).fingerprint is not None


def test_the_asset_extracts_a_day_of_unchanged_files_once(
    export: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = BatchExportSource(str(export), 1, (), "auto")
    store: Any = SimpleNamespace(tables=tables, settings=SimpleNamespace(attributes_from="auto", event_allowlist=(), workers=1))
    first, _ = reading.read_day(DAY, source, store)
    monkeypatch.setattr(reading, "extract_day", None)
    assert reading.read_day(DAY, source, store)[0] == first
