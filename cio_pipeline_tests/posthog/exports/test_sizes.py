"""Small files that are large when they are decompressed take limited memory, or an error names them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cio_pipeline.posthog.exports import files as exported_files
from cio_pipeline.posthog.exports import jsonlines
from cio_pipeline.posthog.exports import parquet as exported_parquet
from cio_pipeline.posthog.exports.batch_export import BatchExportSource
from cio_pipeline.posthog.exports.event_filter import EventFilter
from cio_pipeline.posthog.exports.event_stream import event_stream
from cio_pipeline.posthog.exports.parquet import read_parquet
from cio_pipeline.posthog.source import NotExtracted

START = datetime(2024, 5, 1, tzinfo=UTC)
END = START + timedelta(days=1)
DAY = "2024-05-01T00:00:00+00:00-2024-05-02T00:00:00+00:00"
LINE = (
    b'{"uuid":"018f3173-7000-7421-831e-000000000001","event":"e","distinct_id":"u","timestamp":"2024-05-01T01:00:00Z",'
    b'"properties":{}}\n'
)
MEMORY = 500_000_000
"""Python and its libraries take 150 MB of it. A batch of 32 MB is in memory several times while it is converted."""

linux = pytest.mark.skipif(sys.platform != "linux", reason="the peak memory of a process is read from /proc")
READ = """
import sys
from datetime import datetime, timedelta, timezone
from cio_pipeline.posthog.exports.batch_export import BatchExportSource
from cio_pipeline.posthog.source import NotExtracted
start = datetime(2024, 5, 1, tzinfo=timezone.utc)
try:
    window = BatchExportSource(sys.argv[1], 2, (), "set").events(start, start + timedelta(days=1))
    print("rows", sum(len(frame) for frame in window.frames))
except NotExtracted as error:
    print(error)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def outcome(folder: Path) -> tuple[str, int]:
    """What a process of its own prints when it reads the folder, and its peak memory in bytes."""
    done = subprocess.run([sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, check=True, timeout=300)
    message, memory = done.stdout.strip().splitlines()
    return message, int(memory) * 1024


def rows(number: int, properties: str) -> pa.Table:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * number, pa.int32()), pa.array([properties]))
    times = pa.array([START + timedelta(hours=1)] * number, pa.timestamp("us", "UTC"))
    names = pa.array([f"018f3173-7000-7421-831e-{row:012x}" for row in range(number)])
    person = pa.array(["u"] * number)
    return pa.table({"uuid": names, "event": person, "distinct_id": person, "timestamp": times, "properties": text})


def gzipped(pieces: Iterator[bytes]) -> bytes:
    compressor = zlib.compressobj(1, wbits=31)
    return b"".join([*(compressor.compress(piece) for piece in pieces), compressor.flush()])


@linux
def test_a_text_that_is_repeated_in_every_row_takes_limited_memory(tmp_path: Path) -> None:
    pq.write_table(rows(600, '{"a":"' + "a" * 1_000_000 + '"}'), tmp_path / f"{DAY}.parquet.zst", compression="zstd")
    assert (tmp_path / f"{DAY}.parquet.zst").stat().st_size < 100_000
    message, memory = outcome(tmp_path)
    assert message == "rows 600"
    assert memory < MEMORY


@linux
def test_an_enormous_value_is_an_error_before_it_is_read(tmp_path: Path) -> None:
    pq.write_table(rows(3, '{"a":"' + "a" * 100_000_000 + '"}'), tmp_path / f"{DAY}.parquet.zst", compression="zstd")
    message, memory = outcome(tmp_path)
    assert message.startswith(
        f"{DAY}.parquet.zst cannot be read: its column properties has a value of more than 32,000,000 bytes"
    )
    assert memory < MEMORY


@linux
def test_an_enormous_line_is_an_error_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / f"{DAY}.jsonl.gz").write_bytes(gzipped(b"a" * 1_000_000 for _ in range(300)))
    message, memory = outcome(tmp_path)
    assert message == f"{DAY}.jsonl.gz cannot be read: its line 1 has more than 32,000,000 bytes, which no event has."
    assert memory < MEMORY


@linux
def test_many_large_lines_take_limited_memory(tmp_path: Path) -> None:
    start = '{"uuid":"018f3173-7000-7421-831e-%012x","event":"e","distinct_id":"u",'
    rest = '"timestamp":"2024-05-01T01:00:00Z","properties":{"a":"' + "a" * 900_000 + '"}}\n'
    (tmp_path / f"{DAY}.jsonl.gz").write_bytes(gzipped((start % number + rest).encode() for number in range(300)))
    message, memory = outcome(tmp_path)
    assert message == "rows 300"
    assert memory < MEMORY


def test_a_parquet_file_that_decompresses_to_far_too_much_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported_parquet, "BOMB_BYTES", 1_000_000)
    path = tmp_path / f"{DAY}.parquet.zst"
    pq.write_table(rows(100, "a" * 1_000_000), path, compression="zstd", use_dictionary=False)
    with pytest.raises(NotExtracted, match=r"cannot be read: [\d,]+ bytes of it grow to [\d,]+, which real events do not"):
        list(BatchExportSource(str(tmp_path), 2, (), "set").events(START, END).frames)


@pytest.mark.parametrize(
    ("name", "codec", "limits", "why"),
    [
        (f"{DAY}.jsonl.gz", "gzip", {"MAX_BLANK_LINES": 1000}, r"[\d,]+ of its first [\d,]+ lines are blank"),
        (f"{DAY}.jsonl", None, {"MAX_BLANK_LINES": 1000}, r"[\d,]+ of its first [\d,]+ lines are blank"),
        (f"{DAY}.jsonl.zst", "zstd", {"BOMB_BYTES": 1_000_000}, r"[\d,]+ bytes of it grow to [\d,]+, which real events do not"),
    ],
)
def test_far_too_many_lines_are_an_error_in_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, codec: str | None, limits: dict[str, int], why: str
) -> None:
    for limit, value in limits.items():
        monkeypatch.setattr(jsonlines, limit, value)
    with pa.output_stream(str(tmp_path / name), compression=codec) as file:
        file.write(LINE * 600 + b"\r\n" * 1700 + b"\n" * 5_000_000)
    with pytest.raises(NotExtracted, match=rf"^{re.escape(name)} cannot be read: {why}"):
        list(BatchExportSource(str(tmp_path), 2, (), "set").events(START, END).frames)


def test_a_blank_line_after_each_event_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonlines, "MAX_BLANK_LINES", 10)
    (tmp_path / f"{DAY}.jsonl").write_bytes((LINE + b"\r\n") * 600)
    assert sum(map(len, BatchExportSource(str(tmp_path), 2, (), "set").events(START, END).frames)) == 600


def test_lines_that_are_cut_off_during_reading_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / f"{DAY}.jsonl", jsonlines.read_jsonlines
    path.write_bytes(LINE * 600)

    def cut(*given: Any) -> Iterator[pa.Table]:
        os.truncate(path, len(LINE) * 300)
        yield from read(*given)

    monkeypatch.setattr(exported_files, "read_jsonlines", cut)
    with pytest.raises(NotExtracted, match="run the day again when it is complete"):
        list(BatchExportSource(str(tmp_path), 2, (), "set").events(START, END).frames)


def test_missing_parquet_rows_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(rows(6, "{}"), tmp_path / f"{DAY}.parquet")
    batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *given, **how: (one[:4] for one in batches(*given, **how)))
    with pytest.raises(NotExtracted, match="it gave 4 rows of 6"):
        list(BatchExportSource(str(tmp_path), 2, (), "set").events(START, END).frames)


def test_a_changed_byte_in_a_page_is_detected_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / f"{DAY}.parquet"
    pq.write_table(rows(6, '{"a":"bcdefgh"}'), path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"bcdefgh", b"bcdefgX", 4))  # in the page, not in the statistics of its header
    with pytest.raises(NotExtracted, match="is damaged or cut short"):
        list(BatchExportSource(str(tmp_path), 2, (), "set").events(START, END).frames)


def test_a_row_group_of_other_days_is_read_if_it_has_events_without_a_time(tmp_path: Path) -> None:
    table = rows(2, "{}")
    times = pa.array([START + timedelta(days=9), None], pa.timestamp("us", "UTC"))
    landed = pa.array([START + timedelta(hours=1)] * 2, pa.timestamp("us", "UTC"))
    at = table.schema.get_field_index("timestamp")
    pq.write_table(table.set_column(at, "timestamp", times).append_column("created_at", landed), tmp_path / "file.parquet")
    assert sum(map(len, read_parquet(str(tmp_path / "file.parquet"), EventFilter(START, END, (), "set")))) == 1


@pytest.mark.parametrize("use_dictionary", [True, False])
def test_pieces_are_limited_by_their_size_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_dictionary: bool
) -> None:
    for name, size in (("PIECE_BYTES", 100_000), ("BATCH_BYTES", 100_000)):
        monkeypatch.setattr(exported_parquet, name, size)
    table = pa.concat_tables([rows(500, "b"), rows(500, "a" * 10_000)]).unify_dictionaries()
    pq.write_table(table, tmp_path / "file.parquet", use_dictionary=use_dictionary)
    pieces = list(read_parquet(str(tmp_path / "file.parquet"), EventFilter(START, END, (), "set")))
    assert sum(map(len, pieces)) == 1000
    assert max(piece.nbytes for piece in pieces) < 500_000


def test_a_value_that_is_too_large_is_an_error_even_if_statistics_hide_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported_parquet, "MAX_EVENT_BYTES", 10_000)
    table = pa.concat_tables([rows(500, "{}"), rows(1, "a" * 20_000)]).unify_dictionaries()
    pq.write_table(table, tmp_path / f"{DAY}.parquet")
    with pytest.raises(NotExtracted, match="its column properties has a value of more than 10,000 bytes"):
        list(BatchExportSource(str(tmp_path), 2, (), "set").events(START, END).frames)


def test_merging_many_small_tables_takes_linear_time(tmp_path: Path) -> None:
    pq.write_table(rows(1, "{}"), tmp_path / "file.parquet")
    pieces = read_parquet(str(tmp_path / "file.parquet"), EventFilter(START, END, (), "set"))
    [small] = filter(len, pieces)
    began = time.process_time()
    assert sum(map(len, event_stream([small] * 2000).frames)) == 2000
    assert time.process_time() - began < 3
