"""Files that are read at once: their tables come in order, few are kept, and nothing is read once nobody takes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import closing

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.posthog.exports.read_ahead import FILES_AT_ONCE, TABLES_AHEAD, read_ahead


class Files:
    """Files of tables with one number each. A negative number stands for a table that cannot be read."""

    def __init__(self, numbers: list[list[int]]) -> None:
        self._numbers = numbers
        self.read, self.open, self.threads = list[int](), set[int](), set[int]()

    def all(self) -> Generator[Generator[pa.Table, None, None], None, None]:
        return (self._file(*file) for file in enumerate(self._numbers))

    def _file(self, at: int, numbers: list[int]) -> Generator[pa.Table, None, None]:
        self.open.add(at)
        try:
            for number in numbers:
                self.threads.add(threading.get_ident())
                if number < 0:
                    raise ValueError(number)
                self.read.append(number)
                yield pa.table({"number": [number]})
        finally:
            self.open.remove(at)


def number_in(table: pa.Table) -> int:
    number: int = table["number"][0].as_py()
    return number


@given(st.lists(st.lists(st.integers(-1, 9), max_size=7), max_size=6))
def test_tables_come_in_order_up_to_the_first_error(numbers: list[list[int]]) -> None:
    files, taken = Files(numbers), list[int]()
    expected = [number for of_file in numbers for number in of_file]
    if -1 in expected:
        with pytest.raises(ValueError, match="-1"):
            taken.extend(map(number_in, read_ahead(files.all())))
        assert taken == expected[: expected.index(-1)]
    else:
        assert [number_in(table) for table in read_ahead(files.all())] == expected
    assert not files.open
    assert threading.get_ident() not in files.threads


def test_few_tables_are_read_ahead_and_none_once_it_is_closed() -> None:
    files = Files([[10 * file + table for table in range(9)] for file in range(5)])
    with closing(read_ahead(files.all())) as tables:
        assert number_in(next(tables)) == 0
        most = 1 + FILES_AT_ONCE * (TABLES_AHEAD + 1)  # one is taken; and each file has one that there is no room for
        until = time.monotonic() + 10
        while len(files.read) < most and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        assert (len(files.read), max(files.read) < 20) == (most, True)
    time.sleep(0.1)
    assert len(files.read) == most
    assert not files.open


def test_two_files_are_read_at_once() -> None:
    both = threading.Barrier(2, timeout=10)

    def file(number: int) -> Generator[pa.Table, None, None]:
        both.wait()
        yield pa.table({"number": [number]})

    assert [number_in(table) for table in read_ahead(map(file, range(2)))] == [0, 1]
