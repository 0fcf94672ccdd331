"""Tables in a bucket: several machines publish there at once, one is killed, and whoever reads finds whole versions."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pyarrow as pa
import pytest
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from upath import UPath

from cio_pipeline.tables import versions as module
from cio_pipeline.tables.files import read_file, replace_file
from cio_pipeline.tables.tables import Tables
from cio_pipeline_tests.bucket import CREDENTIALS

DAY = "2026-03-01"
SCHEMAS = {name: pa.schema([("distinct_id", pa.string()), ("number", pa.int64())]) for name in ("customers", "events")}
SHARDS = 2

MACHINE = """
import sys
from itertools import count
from cio_pipeline.tables.tables import Tables
from cio_pipeline_tests.tables.test_buckets import publish
for number in count(0, 2):
    publish(Tables(sys.argv[1]), number)
"""
"""A machine that publishes one version after another, with even numbers, until it is killed."""


def publish(tables: Tables, number: int) -> None:
    """A version of both tables in two shards: so many rows in each, and the number in each row."""
    with tables.replace(DAY, SCHEMAS) as new:
        for shard in range(SHARDS):
            rows = number % 50 + 1
            found = pa.table({"distinct_id": [f"u{row}" for row in range(rows)], "number": [number] * rows})
            new.shards.append(new.writer.write(shard, dict.fromkeys(SCHEMAS, found)))


@pytest.fixture
def root(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A folder of a bucket."""
    S3FileSystem.clear_instance_cache()
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_server}.items():
        monkeypatch.setenv(name, value)
    return f"s3://tables/{request.node.name}"


@pytest.fixture
def requests_made(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The requests to the bucket, by kind."""
    made, call = Counter[str](), S3FileSystem._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        made[method] += 1
        return await call(self, method, *arguments, **options)

    monkeypatch.setattr(S3FileSystem, "_call_s3", counted)
    monkeypatch.setattr(S3FileSystem, "call_s3", sync_wrapper(counted))
    return made


def test_who_reads_while_two_machines_publish_and_one_is_killed_finds_whole_versions(root: str) -> None:
    tables, seen, ended = Tables(root), set[int](), threading.Event()

    def publish_odd_numbers() -> None:
        for number in count(1, 2):
            publish(Tables(root), number)
            if ended.is_set():
                return

    other = threading.Thread(target=publish_odd_numbers)
    with subprocess.Popen([sys.executable, "-c", MACHINE, root]) as lost:
        publish(tables, 1)
        other.start()
        try:
            deadline = time.monotonic() + 60
            while lost.poll() is None or not any(number % 2 for number in seen):
                assert time.monotonic() < deadline
                version = tables.version("events", DAY)
                shards = [tables.shard("events", DAY, version, shard) for shard in range(SHARDS)]
                [number] = {number for shard in shards for number in shard["number"].to_pylist()}
                assert version.shard_rows == (number % 50 + 1,) * SHARDS
                seen.add(number)
                if sum(number % 2 == 0 for number in seen) > 3:
                    lost.kill()
        finally:
            lost.kill()
            ended.set()
            other.join()
    publish(tables, 20_000)
    assert {n for table in SCHEMAS for shard in tables.read_arrow(table, DAY) for n in shard["number"].to_pylist()} == {20_000}
    assert tables.is_intact("events", DAY)


def test_what_another_machine_publishes_is_seen_by_a_process_that_has_looked_before(root: str) -> None:
    ours, theirs = Tables(root), Tables(root)
    theirs.root = UPath(root, use_listings_cache=False, default_cache_type="none")
    folder = ours.root / "derived" / DAY
    replace_file(folder / "20260302T235959-a" / "events-0000.parquet", b"left by a killed run")
    assert len(ours.root.fs.ls(folder.path)) == 1
    for number in (1, 2):
        publish(theirs, number)
        assert ours.version("events", DAY).rows == SHARDS * (number + 1)


def test_the_requests_of_a_days_table_are_few_and_known(root: str, requests_made: Counter[str]) -> None:
    tables = Tables(root)
    publish(tables, 0)
    for number in range(2):
        requests_made.clear()
        publish(tables, number)
        shards = len(SCHEMAS) * SHARDS
        assert requests_made.total() <= shards + 4, requests_made
        assert requests_made["list_objects_v2"] == 1
    requests_made.clear()
    list(tables.read_arrow("events", DAY))
    assert 2 + 2 * SHARDS <= requests_made.total() <= 2 + 3 * SHARDS, requests_made
    assert not requests_made["list_objects_v2"]


def test_what_a_killed_machine_left_in_a_bucket_goes_after_a_week(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = Tables(root)
    monkeypatch.setattr(module, "_now", lambda: datetime(2026, 3, 10, tzinfo=UTC))
    left = [tables.root / "derived" / DAY / name / "events-0000.parquet" for name in ("20260302T235959-a", "20260303T000001-b")]
    for path in left:
        replace_file(path, b"half of it")
    publish(tables, 1)
    assert [read_file(path) for path in left] == [None, b"half of it"]


def test_a_run_that_fails_leaves_nothing_in_a_bucket(root: str) -> None:
    tables = Tables(root)

    def fail() -> None:
        with tables.replace(DAY, SCHEMAS) as new:
            new.writer.write(0, {name: schema.empty_table() for name, schema in SCHEMAS.items()})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert tables.find_version("events", DAY) is None
    assert not tables.root.fs.find(tables.root.path)
