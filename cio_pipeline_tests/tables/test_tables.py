"""Tables: a partition is replaced whole or not at all, and what belongs together lies in one shard."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from cio_pipeline.tables import files
from cio_pipeline.tables.files import StorageError, create, temporary_file_errors
from cio_pipeline.tables.tables import NotMaterialized, Tables

SCHEMA = pa.schema([("key", pa.string()), ("n", pa.int64())])
DAY = "2026-03-02"


Row = tuple[str, int]


def write(tables: Tables, *shards: list[Row]) -> None:
    with tables.replace(DAY, {"numbers": SCHEMA}) as new:
        for number, rows in enumerate(shards):
            new.shards.append(new.writer.write(number, {"numbers": pd.DataFrame(rows, columns=["key", "n"])}))


def rows(tables: Tables) -> list[list[tuple[str, int]]]:
    return [list(shard.itertuples(index=False, name=None)) for shard in tables.read("numbers", DAY)]


@pytest.mark.parametrize("root", ["folder", "memory://tables"])
def test_what_is_written_is_read_in_shards(tmp_path: Path, root: str) -> None:
    tables = Tables(root if "://" in root else str(tmp_path / root))
    shards = [[("a", 1), ("a", 2)], [], [("b", 3)]]
    write(tables, *shards)
    assert rows(tables) == shards
    assert tables.version("numbers", DAY).shard_rows == (2, 0, 1)


def test_versions_that_hold_the_same_have_the_same_content_and_others_another(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    contents, names = [], set()
    for shards in ([[("a", 1)], []], [[("a", 1)], []], [[("a", 2)], []], [[("a", 1)]]):
        write(tables, *shards)
        contents.append(tables.version("numbers", DAY).content_hash)
        names.add(tables.version("numbers", DAY).name)
    assert contents[0] == contents[1]
    assert (len(set(contents)), len(names)) == (3, 4)


@pytest.mark.parametrize("how", ["as written", "gone", "changed"])
def test_a_version_is_whole_while_its_files_are_as_they_were_written(tmp_path: Path, how: str) -> None:
    tables = Tables(str(tmp_path))
    write(tables, [("a", 1)], [("b", 2)])
    path = only_file(tmp_path, "numbers-0001.parquet")
    if how == "gone":
        path.unlink()
    elif how == "changed":
        content = bytearray(path.read_bytes())
        content[20] ^= 1
        path.write_bytes(content)
    assert tables.is_intact("numbers", DAY) == (how == "as written")


def test_what_is_noted_of_a_version_is_kept_with_it(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    with tables.replace(DAY, {"numbers": SCHEMA}) as new:
        new.shards.append(new.writer.write(0, {"numbers": SCHEMA.empty_table()}))
        new.metadata = {"made_of": "x", "counts": {"a": 1}}
    assert tables.version("numbers", DAY).metadata == {"made_of": "x", "counts": {"a": 1}}


def test_a_partition_that_nobody_wrote_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotMaterialized, match="numbers of 2026-03-02 is not there"):
        list(Tables(str(tmp_path)).read("numbers", DAY))


@pytest.mark.parametrize("root", ["folder", "memory://fails"])
def test_a_version_that_fails_leaves_nothing_behind_and_what_was_there_as_it_was(tmp_path: Path, root: str) -> None:
    tables = Tables(root if "://" in root else str(tmp_path / root))
    write(tables, [("a", 1)])
    before = sorted(str(path) for path in tables.root.glob("**/*"))
    with pytest.raises(KeyError):
        fail_after_the_first_shard(tables)
    assert sorted(str(path) for path in tables.root.glob("**/*")) == before
    assert rows(tables) == [[("a", 1)]]


def test_a_version_that_cannot_be_pointed_to_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    tables = Tables(str(tmp_path))
    write(tables, [("a", 1)])
    before = sorted(tmp_path.glob("**/*"))
    monkeypatch.setattr(type(tables.root), "rename", full)
    with pytest.raises(StorageError, match="No space left"):
        write(tables, [("b", 1)])
    assert sorted(tmp_path.glob("**/*")) == before


def test_an_error_that_may_quote_a_row_is_named_by_its_kind_only() -> None:
    with pytest.raises(StorageError, match=r"cannot be used \(ArrowInvalid\): check") as said, temporary_file_errors("there"):
        raise pa.ArrowInvalid("jane@example.com")
    assert "jane" not in str(said.value)


def fail_after_the_first_shard(tables: Tables) -> None:
    with tables.replace(DAY, {"numbers": SCHEMA}) as new:
        new.shards.append(new.writer.write(0, {"numbers": pd.DataFrame({"key": ["b"], "n": [2]})}))
        new.writer.write(1, {})


GROUP = dict.fromkeys(("customers", "events", "rejects"), SCHEMA)


def write_all(tables: Tables, number: int) -> None:
    with tables.replace(DAY, GROUP) as new:
        new.shards.append(
            new.writer.write(0, dict.fromkeys(GROUP, pd.DataFrame({"key": ["a"] * number, "n": [number] * number})))
        )


def numbers(tables: Tables) -> list[list[int]]:
    return [[n for shard in tables.read(name, DAY) for n in shard["n"]] for name in ("customers", "events", "rejects")]


def test_tables_of_a_group_are_replaced_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, create = Tables(str(tmp_path)), files.create

    def full(path: UPath) -> IO[bytes]:
        if "rejects" in path.name:
            raise OSError(28, "No space left on device")
        return create(path)

    write_all(tables, 2)
    with monkeypatch.context() as last:
        last.setattr("cio_pipeline.tables.versions.create", full)
        with pytest.raises(StorageError, match="No space"):
            write_all(tables, 3)
    assert numbers(tables) == [[2, 2]] * 3
    write_all(tables, 3)
    assert numbers(tables) == [[3, 3, 3]] * 3
    assert [tables.version(name, DAY).rows for name in GROUP] == [3, 3, 3]


def test_two_runs_that_replace_a_group_at_once_leave_tables_of_one_run(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: write_all(tables, number), range(1, 17)))
    customers, events, rejects = numbers(tables)
    assert customers == events == rejects == [len(events)] * len(events)


def only_file(folder: Path, what: str) -> Path:
    [path] = folder.glob(f"**/{what}")
    return path


@pytest.mark.parametrize("how", ["gone", "cut", "too few rows", "too many rows"])
def test_a_shard_that_is_missing_or_has_other_rows_is_named(tmp_path: Path, how: str) -> None:
    tables = Tables(str(tmp_path))
    write(tables, [("a", 1), ("b", 2)])
    path = only_file(tmp_path, "numbers-0000.parquet")
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        row = pq.read_table(path).slice(0, 1)
        pq.write_table(pa.concat_tables([row] * (1 if how == "too few rows" else 3)), path)
    for read in (tables.read("numbers", DAY), tables.rows_where("numbers", DAY, tables.version("numbers", DAY), "key", ["a"])):
        with pytest.raises(
            StorageError, match=r"^Shard 0 of numbers of 2026-03-02 .+: materialize numbers for 2026-03-02 again"
        ):
            list(read)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"name": "x", "shards": 1, "rows": 2}', '{"version": "x", "rows": {}, "a": 1}']
)
def test_a_pointer_that_is_broken_or_another_versions_is_named_and_can_be_replaced(tmp_path: Path, text: str) -> None:
    tables = Tables(str(tmp_path))
    write(tables, [("a", 1)])
    only_file(tmp_path, "current.json").write_text(text)
    with pytest.raises(
        StorageError, match=r"^numbers of 2026-03-02 cannot be read .+: materialize numbers for 2026-03-02 again"
    ):
        list(tables.read("numbers", DAY))
    write(tables, [("b", 1)])
    assert rows(tables) == [[("b", 1)]]


def test_rows_are_found_by_their_text_in_whatever_shard_and_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cio_pipeline.tables.parquet.ROW_GROUP", 2)
    people = pa.schema([("distinct_id", pa.string()), ("n", pa.int64())])
    tables = Tables(str(tmp_path))
    with tables.replace(DAY, {"people": people}) as new:
        for number in range(3):
            frame = pd.DataFrame({"distinct_id": [f"k{n // 3}" for n in range(20)], "n": [100 * number + n for n in range(20)]})
            new.shards.append(new.writer.write(number, {"people": frame}))
    version = tables.version("people", DAY)
    shards = tables.rows_where("people", DAY, version, "distinct_id", ["k5", "k1", "nobody"])
    found = [n for shard in shards for n in shard["n"].to_pylist()]
    assert found == [100 * number + n for number in range(3) for n in (3, 4, 5, 15, 16, 17)]
    assert list(tables.rows_where("people", DAY, version, "distinct_id", [])) == []


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    write(tables, [("a", 1)])
    assert [list(shard.columns) for shard in tables.read("numbers", DAY, ["n"])] == [["n"]]


def test_rows_of_a_partition_that_nobody_wrote_are_no_empty_table(tmp_path: Path) -> None:
    with pytest.raises(NotMaterialized):
        list(Tables(str(tmp_path)).read("numbers", DAY))


def test_a_full_disk_is_a_sentence_that_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    tables = Tables(str(tmp_path))
    monkeypatch.setattr("cio_pipeline.tables.versions.create", full)
    with pytest.raises(StorageError, match=r"^The folder /.+/numbers/2026-03-02 \(CIO_DATA_DIR\) cannot be written: No space"):
        write(tables, [("a", 1)])
    assert tables.find_version("numbers", DAY) is None
    assert not list(tmp_path.glob("**/*.parquet"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/numbers/2026-03-02 \(CIO_DATA_DIR\) cannot be written: Not a directory\.$"):
        write(Tables(str(tmp_path / "file")), [("a", 1)])


def test_a_version_stays_for_a_day_from_when_it_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been begun long before: what reads it has begun before the other was there."""
    tables, folder = Tables(str(tmp_path)), tmp_path / "numbers" / DAY

    def at(day: int, hour: int) -> None:
        monkeypatch.setattr("cio_pipeline.tables.versions._now", lambda: datetime(2026, 3, day, hour, tzinfo=UTC))

    def kept() -> list[str]:
        return sorted(path.name[:11] for path in folder.iterdir() if path.is_dir())

    for day, hour, expected in (
        (1, 0, ["20260301T00"]),
        (5, 0, ["20260301T00", "20260305T00"]),
        (5, 23, ["20260301T00", "20260305T00", "20260305T23"]),
        (6, 1, ["20260305T00", "20260305T23", "20260306T01"]),
        (9, 0, ["20260306T01", "20260309T00"]),
    ):
        at(day, hour)
        write(tables, [("a", day)])
        assert kept() == expected
    assert rows(tables) == [[("a", 9)]]


def test_what_stands_or_was_just_replaced_is_no_killed_runs_however_old_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Tables(str(tmp_path))

    def at(day: int) -> None:
        monkeypatch.setattr("cio_pipeline.tables.versions._now", lambda: datetime(2026, 3, day, tzinfo=UTC))

    at(1)
    write(tables, [("a", 1)], [("b", 1)])
    reading = tables.read("numbers", DAY)
    next(reading)
    with tables.replace(DAY, {"numbers": SCHEMA}) as new:
        new.shards.append(new.writer.write(0, {"numbers": pd.DataFrame({"key": ["a"], "n": [2]})}))
        at(20)
    next(reading)
    assert rows(tables) == [[("a", 2)]]


def test_what_cannot_be_cleaned_up_fails_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    tables = Tables(str(tmp_path))
    (tmp_path / "numbers" / DAY / "20200101T000000-killed").mkdir(parents=True)
    monkeypatch.setattr(type(tables.root), "rmdir", denied)
    write(tables, [("a", 1)])
    assert rows(tables) == [[("a", 1)]]


def test_a_run_that_is_ended_while_it_cleans_up_keeps_what_it_has_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: object) -> None:
        raise KeyboardInterrupt

    tables = Tables(str(tmp_path))
    monkeypatch.setattr("cio_pipeline.tables.versions._prune", ended)
    with pytest.raises(KeyboardInterrupt):
        write(tables, [("a", 1)])
    assert rows(tables) == [[("a", 1)]]


def test_what_a_killed_run_left_goes_after_a_week_and_what_may_be_at_work_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, folder = Tables(str(tmp_path)), tmp_path / "numbers" / DAY
    monkeypatch.setattr("cio_pipeline.tables.versions._now", lambda: datetime(2026, 3, 9, tzinfo=UTC))
    for name in ("20260301T235959-killed", "20260302T000001-at-work"):
        (folder / name).mkdir(parents=True)
    write(tables, [("a", 1)])
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    assert names == {"20260302T000001-at-work", tables.version("numbers", DAY).name}


def test_no_file_of_a_table_is_written_over(tmp_path: Path) -> None:
    path = Tables(str(tmp_path)).root / "file"
    create(path).close()
    with pytest.raises(FileExistsError):
        create(path)


def test_a_shard_is_in_row_groups_so_that_a_few_rows_are_found_without_reading_it(tmp_path: Path) -> None:
    write(Tables(str(tmp_path)), [("a", n) for n in range(25_000)])
    assert pq.read_metadata(only_file(tmp_path, "numbers-0000.parquet")).num_row_groups == 3


def test_table_files_are_their_owners_whatever_the_umask(tmp_path: Path) -> None:
    os.umask(0)
    write(Tables(str(tmp_path)), [("a", 1)], [("b", 2)])
    files = [path for path in tmp_path.glob("**/*") if path.is_file()]
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_who_reads_while_another_run_replaces_reads_one_version(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    write(tables, [("k1", 1)] * 20, [("k2", 1)] * 30)
    reading = tables.read("numbers", DAY)
    first = next(reading)
    write(tables, [("k1", 2)])
    assert len(first) + len(next(reading)) == 50
    assert rows(tables) == [[("k1", 2)]]


def test_a_process_that_may_open_few_files_allows_itself_more() -> None:
    code = (
        "import resource; from cio_pipeline.tables.files import allow_open_files;"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard));"
        "allow_open_files(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(said) > 1_000


@pytest.mark.parametrize(
    ("temporary", "names"), [(False, r"\(CIO_DATA_DIR\) cannot be written"), (True, "^Temporary files in ")]
)
def test_what_cannot_be_written_is_named_by_where_it_lies(tmp_path: Path, temporary: bool, names: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=names):
        write(Tables(str(tmp_path / "file"), temporary=temporary), [("a", 1)])
