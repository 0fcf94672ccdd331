"""All files of an interval are read, whichever run or tool wrote them, and ignored files are logged."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from cio_pipeline.posthog.exports import batch_export
from cio_pipeline.posthog.exports.batch_export import BatchExportSource
from cio_pipeline.posthog.exports.folder import Folder, list_folder
from cio_pipeline.posthog.exports.names import parse_name
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.sandbox.posthog.exports import pack
from cio_pipeline_tests.posthog.exports.stored import stored

START = datetime(2024, 5, 1, tzinfo=UTC)
END = START + timedelta(days=1)
DAY = "2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00"
NEXT = "2024-05-02T00:00:00+00:00-2024-05-03T00:00:00+00:00"
ENDINGS = {
    ".parquet.zst": ("parquet", "zstd"),
    ".parquet": ("parquet", None),
    ".jsonl": ("jsonl", None),
    ".jsonl.gz": ("jsonl", "gzip"),
}


def put(folder: Path, name: str, *numbers: int, like: str = "") -> None:
    """Writes a file with these events, in the format of its name, or of the other one."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = next(ending for ending in ENDINGS if (like or name).endswith(ending))
    path.write_bytes(pack([stored(number) for number in numbers], *ENDINGS[ending]))


def manifest(folder: Path, *names: str) -> None:
    (folder / f"{DAY}_manifest.json").write_text(json.dumps({"files": [f"posthog/{name}" for name in names]}))


def numbers(folder: Path) -> list[int]:
    window = BatchExportSource(str(folder), 2, (), "set").events(START, END)
    frames = [table.to_pandas() for table in window.frames]
    events = pd.concat(frames).drop_duplicates(["event", "distinct_id", "uuid"]) if frames else {"properties": []}
    return sorted(json.loads(text)["n"] for text in events["properties"])


def test_a_backfill_counts_in_addition_to_the_parts_of_a_manifest(tmp_path: Path) -> None:
    put(tmp_path, f"{DAY}-0.parquet.zst", 0, 1, 2, 3)
    put(tmp_path, f"{DAY}-1.parquet.zst", 4, 5, 6, 7)
    manifest(tmp_path, f"{DAY}-0.parquet.zst", f"{DAY}-1.parquet.zst")
    put(tmp_path, f"{DAY}.jsonl", 6, 7, 8, 9, 10, 11)
    assert numbers(tmp_path) == list(range(12))


@pytest.mark.parametrize("ending", [".parquet.zst", ".jsonl.gz"])
def test_parts_named_as_in_2024_count_without_a_manifest(tmp_path: Path, ending: str) -> None:
    put(tmp_path, f"{DAY}{ending}", *range(5))
    put(tmp_path, f"{DAY}-1{ending}", *range(5, 9))
    put(tmp_path, f"{DAY}-2{ending}", *range(9, 13))
    assert numbers(tmp_path) == list(range(13))
    (tmp_path / f"{DAY}-1{ending}").unlink()
    with pytest.raises(NotExtracted, match=f"-1{ending} cannot be read: it does not exist, but a later part does"):
        numbers(tmp_path)


def test_parts_without_a_manifest_count_if_there_is_a_file_of_another_run(tmp_path: Path) -> None:
    put(tmp_path, f"{DAY}.jsonl", 0, 1)
    put(tmp_path, f"{DAY}-0.parquet.zst", 1, 2)
    put(tmp_path, f"{DAY}-1.parquet.zst", 3)
    assert numbers(tmp_path) == [0, 1, 2, 3]


def test_files_of_all_formats_folders_and_overlaps_count_and_each_event_is_read_once(tmp_path: Path) -> None:
    for number, ending in enumerate(ENDINGS):
        put(tmp_path / "a", f"{DAY}{ending}", number, 50)
    put(tmp_path / "b" / "2024", f"{DAY}.parquet", 4, 50)
    put(tmp_path, "2024-04-28T00:00:00+00:00-2024-05-05T00:00:00+00:00.jsonl", 5, 50)
    put(tmp_path, "2024-05-01T02:00:00+02:00-2024-05-02T02:00:00+02:00.jsonl", 6, 50)
    assert numbers(tmp_path) == [0, 1, 2, 3, 4, 5, 6, 50]


def test_parts_left_by_a_failed_run_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in range(3):
        put(tmp_path, f"{DAY}-{part}.parquet.zst", part)
    put(tmp_path, f"{DAY}-7.jsonl.gz", 7)
    manifest(tmp_path, f"{DAY}-0.parquet.zst", f"{DAY}-1.parquet.zst")
    assert numbers(tmp_path) == [0, 1, 7]
    assert any("Ignored, because the manifest" in text and f"{DAY}-2.parquet.zst" in text for text in caplog.messages)


@pytest.mark.parametrize("copy", ["_manifest (1).json", "_manifest - Copy.json"])
def test_the_parts_of_a_manifest_and_of_its_copy_all_count(tmp_path: Path, copy: str) -> None:
    for part in range(4):
        put(tmp_path, f"{DAY}-{part}.parquet.zst", part)
    manifest(tmp_path, f"{DAY}-0.parquet.zst", f"{DAY}-1.parquet.zst")
    (tmp_path / f"{DAY}{copy}").write_text(json.dumps({"files": [f"{DAY}-1.parquet.zst", f"{DAY}-2.parquet.zst"]}))
    assert numbers(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize("name", ["0001-01-01-2024-05-02.jsonl", "0001-01-01T00:00:00+09:00-9999-12-31T00:00:00Z.jsonl"])
def test_a_name_with_dates_out_of_range_is_not_understood(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, 1)
    with pytest.raises(NotExtracted, match=f"CIO_BATCH_EXPORT_URL contains no file .* It has {re.escape(name)}"):
        numbers(tmp_path)


def test_a_manifest_that_names_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    put(tmp_path, f"{DAY}-0.parquet.zst", 0)
    put(tmp_path, f"{DAY}.jsonl", 1)
    manifest(tmp_path, f"{DAY}-0.parquet.zst", f"{DAY}-1.parquet.zst")
    with pytest.raises(NotExtracted, match=r"-1\.parquet\.zst cannot be read: .*_manifest\.json lists it, but"):
        numbers(tmp_path)


def test_an_empty_manifest_is_an_empty_day(tmp_path: Path) -> None:
    manifest(tmp_path)
    assert numbers(tmp_path) == []


CHANGED = {
    "a browser's": "2024-05-01T00_00_00+00_00-2024-05-02T00_00_00+00_00.parquet.zst",
    "dashes": "2024-05-01T00-00-00+00-00-2024-05-02T00-00-00+00-00.parquet.zst",
    "no colons": "2024-05-01T000000+0000-2024-05-02T000000+0000.parquet.zst",
    "encoded": "2024-05-01T00%3A00%3A00%2B00%3A00-2024-05-02T00%3A00%3A00%2B00%3A00.parquet.zst",
    "a plus that became a space": "2024-05-01T00:00:00 00:00-2024-05-02T00:00:00 00:00.parquet.zst",
    "Windows' colons": "2024-05-01T00\uf03a00\uf03a00+00\uf03a00-2024-05-02T00\uf03a00\uf03a00+00\uf03a00.parquet.zst",
    "saved twice": f"{DAY} (1).parquet.zst",
    "saved twice elsewhere": f"{DAY}.parquet.zst (2)",
    "a copy": f"{DAY} - Copy.parquet.zst",
    "copied": f"Copy of {DAY}.parquet.zst",
    "capitals": f"{DAY}.PARQUET.ZST",
    "zstd": f"{DAY}.parquet.zstd",
    "Z": "2024-05-01T00:00:00Z-2024-05-02T00:00:00Z.parquet.zst",
}


@pytest.mark.parametrize("how", CHANGED)
def test_names_that_were_changed_by_copying_are_understood(tmp_path: Path, how: str) -> None:
    put(tmp_path, CHANGED[how], 1, like=".parquet.zst")
    assert numbers(tmp_path) == [1]


def test_a_manifest_and_parts_that_a_browser_saved_are_understood(tmp_path: Path) -> None:
    for part in range(2):
        put(tmp_path, f"{DAY}-{part}.parquet.zst".replace(":", "_"), part)
    put(tmp_path, f"{DAY}-1 (1).parquet.zst".replace(":", "_"), 1)
    (tmp_path / f"{DAY}_manifest.json".replace(":", "_")).write_text(
        json.dumps({"files": [f"posthog/{DAY}-{part}.parquet.zst" for part in range(2)]})
    )
    assert numbers(tmp_path) == [0, 1]


@pytest.mark.parametrize(
    "name",
    [
        f"{DAY}.csv",
        f"{DAY}.avro",
        f"{DAY}.json",
        f"{DAY}",
        f"{DAY}.parquet.7z",
        f"{DAY}.jsonl.bz2",
        f"backup_{DAY}.parquet.zst",
        f"{DAY}-final.parquet.zst",
        "2024-05-01T00:00:00-2024-05-02T00:00:00.parquet",
        "events_2024-05-01_2024-05-01.parquet",
    ],
)
def test_an_unknown_name_is_refused_if_the_file_may_have_events_of_the_day(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"{DAY}.parquet.zst", 1)
    put(tmp_path / "other", name, 2, like=".parquet.zst")
    with pytest.raises(NotExtracted, match=r"cannot be read: a batch export has no such name. Rename it as") as error:
        numbers(tmp_path)
    assert f"other/{name}" in str(error.value)


def test_an_unknown_name_is_logged_if_there_are_files_of_its_interval(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, f"{DAY}.parquet.zst", 1)
    (tmp_path / f"{DAY}.csv").touch()
    assert numbers(tmp_path) == [1]
    assert any(f"{DAY}.csv" in text and "Ignored" in text for text in caplog.messages)


def test_unknown_names_of_other_days_do_not_matter(tmp_path: Path) -> None:
    put(tmp_path, f"{DAY}.parquet.zst", 1)
    (tmp_path / "2024-06-01T00:00:00+00:00-2024-06-02T00:00:00+00:00.csv").touch()
    assert numbers(tmp_path) == [1]


@pytest.mark.parametrize(
    "name",
    [
        f"{DAY}.parquet.zst.tmp",
        f"{DAY}.parquet.zst.part",
        f"{DAY}.parquet.zst.crdownload",
        f".{DAY}.parquet.zst.Ab12Cd",
        f"{DAY}.parquet.zst.6eF1aB2c",
        f"{DAY}.jsonl~",
        f"{DAY}.parquet.zst_.gstmp",
    ],
)
def test_a_file_that_is_still_being_written_means_an_unfinished_run(tmp_path: Path, name: str) -> None:
    put(tmp_path, f"{NEXT}.parquet.zst", 1)
    (tmp_path / name).touch()
    with pytest.raises(NotExtracted, match=r"is not finished: .* is still being written, or left over"):
        numbers(tmp_path)
    put(tmp_path, f"{DAY}.parquet.zst", 2)
    assert numbers(tmp_path) == [1, 2]


def test_files_without_an_interval_in_their_names_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("events.parquet", "2024-05-01.jsonl.gz", "export.csv"):
        (tmp_path / name).touch()
    for name in (".DS_Store", "_SUCCESS", "README.md", f"{DAY}.parquet.zst.md5", f".{DAY}.parquet.crc"):
        (tmp_path / name).touch()
    with pytest.raises(NotExtracted, match=r"contains no file .* It has 2024-05-01\.jsonl\.gz, events\.parquet, export\.csv\."):
        numbers(tmp_path)
    put(tmp_path, f"{DAY}.parquet.zst", 1)
    assert numbers(tmp_path) == [1]
    assert any("events.parquet" in text and "README" not in text for text in caplog.messages)


def test_an_export_of_persons_in_a_subfolder_is_ignored_and_fills_no_gap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    persons = {"person_id": ["p"], "distinct_id": ["u"], "properties": ["{}"], "created_at": [START]}
    put(tmp_path / "2024" / "05" / "02", f"{DAY}.parquet.zst", 1)
    for name in (DAY, NEXT):
        folder = tmp_path / "persons" / f"{name[:10]}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table(persons), folder / f"{name}.parquet.zst")
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / f"{DAY}.jsonl").write_text('{"session_id":"s","start_timestamp":"2024-05-01T00:00:00Z"}\n')
    assert numbers(tmp_path) == [1]
    assert any("an export of persons or sessions" in text and "persons/2024-05-01" in text for text in caplog.messages)
    with pytest.raises(NotExtracted, match="reaches only to 2024-05-02"):
        BatchExportSource(str(tmp_path), 2, (), "set").events(END, END + timedelta(days=1))


def test_a_folder_without_permission_to_read_is_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, f"{DAY}.parquet.zst", 1)
    put(tmp_path / "more", f"{DAY}.jsonl", 2)
    scan = os.scandir

    def forbidden(path: str) -> Any:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(NotExtracted, match="CIO_BATCH_EXPORT_URL cannot be listed: this user may not read it"):
        numbers(tmp_path)


@pytest.mark.parametrize("ending", [".parquet.zst", ".jsonl"])
@pytest.mark.parametrize("change", ["gone", "shorter", "longer", "empty"])
def test_a_file_that_changes_after_the_folder_was_listed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, change: str
) -> None:
    put(tmp_path, f"{DAY}{ending}", *range(20))
    path = tmp_path / f"{DAY}{ending}"

    def then_changed(url: str) -> Folder:
        found = list_folder(url)
        content = path.read_bytes()
        lines = content.splitlines(keepends=True)
        changed = {"shorter": b"".join(lines[:-1]), "longer": content + lines[-1], "empty": b"", "gone": b""}
        path.write_bytes(changed[change])
        if change == "gone":
            path.unlink()
        return found

    monkeypatch.setattr(batch_export, "list_folder", then_changed)
    names = (
        "has disappeared since the folder was listed" if change == "gone" else "bytes, but had .* when the folder was listed"
    )
    with pytest.raises(NotExtracted, match=f"cannot be read: .*{names}"):
        numbers(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"{DAY}.jsonl"
    put(tmp_path, path.name, *range(20_000))
    opened = LocalFileSystem.open

    def then_cut(self: LocalFileSystem, *rest: Any, **more: Any) -> Any:
        file = opened(self, *rest, **more)
        seek = file.seek

        def cut(to: int, whence: int = 0) -> int:
            at = seek(to, whence)
            if whence == 2:
                content = path.read_bytes()
                os.truncate(path, content[: len(content) // 2].rindex(b"\n") + 1)
            return int(at)

        file.seek = cut
        return file

    monkeypatch.setattr(LocalFileSystem, "open", then_cut)
    with pytest.raises(NotExtracted, match=r"cannot be read: it has .* bytes, but had"):
        numbers(tmp_path)


def test_an_impossible_time_is_not_an_interval() -> None:
    assert parse_name("2024-13-01T00:00:00+00:00-2024-05-02T00:00:00+00:00.parquet") is None
