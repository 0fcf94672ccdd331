"""Tables: a partition is replaced whole or not at all, and what belongs together lies in one shard."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.storage.tables import NotMaterialized, Tables, shards_for
from cio_pipeline.storage.writer import shard_of

SCHEMA = pa.schema([("key", pa.string()), ("n", pa.int64())])
DAY = "2026-03-02"


def write(tables: Tables, rows: list[tuple[str, int]], shards: int = 1) -> None:
    with tables.replace("numbers", DAY, SCHEMA, shards) as table:
        for start in range(0, len(rows), 3):
            table.add(pd.DataFrame(rows[start : start + 3], columns=["key", "n"]), by="key")
        table.finish_each(lambda shard: shard.sort_values("n", ignore_index=True))


def rows(tables: Tables) -> list[list[tuple[str, int]]]:
    return [list(shard.itertuples(index=False, name=None)) for shard in tables.read("numbers", DAY)]


@pytest.mark.parametrize("root", ["folder", "memory://tables"])
def test_what_is_written_is_read_in_shards(tmp_path: Path, root: str) -> None:
    tables = Tables(root if "://" in root else str(tmp_path / root))
    write(tables, [(f"k{n % 7}", n) for n in range(20, 0, -1)], shards=3)
    shards = rows(tables)
    assert len(shards) == 3
    assert sorted(row for shard in shards for row in shard) == sorted((f"k{n % 7}", n) for n in range(1, 21))
    assert all(shard == sorted(shard, key=lambda row: row[1]) for shard in shards)
    assert all(len({index for index, shard in enumerate(shards) for key, _ in shard if key == f"k{k}"}) == 1 for k in range(7))


def test_an_empty_day_is_an_empty_table(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    write(tables, [])
    assert rows(tables) == [[]]
    assert tables.version("numbers", DAY).rows == 0


def test_a_partition_that_nobody_wrote_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotMaterialized, match="numbers of 2026-03-02 is not there"):
        list(Tables(str(tmp_path)).read("numbers", DAY))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    write(tables, [("a", 1)])
    with pytest.raises(ZeroDivisionError), tables.replace("numbers", DAY, SCHEMA, 1) as table:
        table.add(pd.DataFrame({"key": ["b"], "n": [1 // 0]}), by="key")
    assert rows(tables) == [[("a", 1)]]


def test_who_reads_while_another_run_replaces_reads_one_version(tmp_path: Path) -> None:
    tables = Tables(str(tmp_path))
    write(tables, [(f"k{n}", 1) for n in range(50)], shards=2)
    reading = tables.read("numbers", DAY)
    first = next(reading)
    write(tables, [("k1", 2)], shards=1)
    assert len(first) + len(next(reading)) == 50
    assert rows(tables) == [[("k1", 2)]]


def test_what_is_added_is_spilled_and_does_not_stay_in_memory(tmp_path: Path) -> None:
    texts = pa.schema([("key", pa.string()), ("text", pa.string())])
    frame = pd.DataFrame({"key": [f"k{number}" for number in range(100)], "text": ["x" * 2000] * 100})
    with Tables(str(tmp_path)).replace("texts", DAY, texts, shards=20) as table:
        before = pa.total_allocated_bytes()
        for _ in range(100):
            table.add(frame, by="key")
        assert pa.total_allocated_bytes() - before < 100_000
    assert sum(len(shard) for shard in Tables(str(tmp_path)).read("texts", DAY)) == 10_000


def test_a_day_is_split_at_70000_rows_and_at_50_megabytes() -> None:
    assert [shards_for(count, 700) for count in (0, 1, 70_000, 70_001, 7_000_000)] == [1, 1, 1, 2, 100]
    assert [shards_for(50_000, size) for size in (0, 1_000, 1_001, 10_000)] == [1, 1, 2, 10]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1), st.integers(1, 60))
def test_the_same_text_is_always_in_the_same_shard(texts: list[str], shards: int) -> None:
    together = shard_of(pd.Series(texts, dtype=object), shards)
    alone = [shard_of(pd.Series([text], dtype=object), shards)[0] for text in texts]
    assert together.tolist() == alone
    assert all(0 <= shard < shards for shard in alone)


def test_a_process_that_may_open_few_files_allows_itself_more() -> None:
    code = (
        "import resource; from cio_pipeline.storage.tables import allow_open_files;"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard));"
        "allow_open_files(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(said) > 1_000
