"""Reads several files at once, in threads: while Arrow decompresses one, another is fetched or converted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from queue import SimpleQueue
from typing import NamedTuple

import pyarrow as pa

FILES_AT_ONCE = 2
TABLES_AHEAD = 2
"""How many tables of each file are kept until they are taken, which limits the memory."""


class _File(NamedTuple):
    """A file that is being read: its tables, then None; how many more may be kept; and the end of the reading."""

    tables: SimpleQueue[pa.Table | None]
    room: threading.Semaphore
    ended: Future[None]


def read_ahead(files: Iterable[Generator[pa.Table, None, None]]) -> Generator[pa.Table, None, None]:
    """Yields the files' tables, in order. Raises what reading a file raises, after the tables before it. Once the generator is
    closed, no file is read any more."""
    waiting, is_closed = iter(files), threading.Event()

    def read(file: Generator[pa.Table, None, None], tables: SimpleQueue[pa.Table | None], room: threading.Semaphore) -> None:
        try:
            with closing(file):
                for table in file:
                    room.acquire()
                    if is_closed.is_set():
                        return
                    tables.put(table)
        finally:
            tables.put(None)

    def begin(file: Generator[pa.Table, None, None]) -> _File:
        tables: SimpleQueue[pa.Table | None] = SimpleQueue()
        room = threading.Semaphore(TABLES_AHEAD)
        return _File(tables, room, threads.submit(read, file, tables, room))

    with ThreadPoolExecutor(FILES_AT_ONCE, "read") as threads:
        reading = deque(map(begin, islice(waiting, FILES_AT_ONCE)))
        try:
            while reading:
                while (table := reading[0].tables.get()) is not None:
                    reading[0].room.release()
                    yield table
                reading.popleft().ended.result()
                reading.extend(map(begin, islice(waiting, 1)))
        finally:
            is_closed.set()
            for file in reading:
                file.room.release()
