"""The shuffle: what belongs together lies in one shard, of a bounded size, whatever comes first; and nothing is lost."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.tables import shuffle as shuffling
from cio_pipeline.tables.files import StorageError, temporary_folder
from cio_pipeline.tables.shuffle import Shard, buckets_of, shards, shuffle, spill

SCHEMA = pa.schema([("who", pa.string()), ("text", pa.string()), ("n", pa.int64())])


def table(*rows: tuple[str, str, int]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards, and what is held in memory, of a few rows."""
    monkeypatch.setattr(shuffling, "SHARD_BYTES", 4_000)
    monkeypatch.setattr(shuffling, "SHARD_ROWS", 50)
    monkeypatch.setattr(shuffling, "SPILL_BYTES", 2_000)


def test_the_bucket_of_a_text_stays_what_it_is_for_ever() -> None:
    texts = ["", "u1", "U1", "ada@example.com", "Łódź", "ŁÓDŹ", "018f3173-7000-7421-831e-000000000001"]
    assert buckets_of(pa.chunked_array([texts])).tolist() == [0, 374, 374, 160, 411, 411, 19]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1), st.integers(1, 512))
def test_the_same_text_in_whatever_case_is_always_in_the_same_bucket(texts: list[str], buckets: int) -> None:
    together = buckets_of(pa.chunked_array([texts, [text.lower() for text in texts]]), buckets).tolist()
    assert together[: len(texts)] == together[len(texts) :]
    assert together[0] == buckets_of(pa.chunked_array([texts[:1]]), buckets)[0]
    assert all(0 <= bucket < buckets for bucket in together)


@pytest.mark.usefixtures("small")
def test_every_row_comes_out_once_with_those_of_its_text_in_shards_of_a_bounded_size(tmp_path: Path) -> None:
    rows = [(f"{'u' if n % 2 else 'U'}{n % 97}", "x" * (n % 50), n) for n in range(1000)]
    found = [
        shard.read().to_pylist()
        for shard in shuffle((table(*rows[at : at + 7]) for at in range(0, 1000, 7)), "who", SCHEMA, tmp_path)
    ]
    assert len(found) > 10
    assert max(map(len, found)) <= 50
    assert sorted(row["n"] for shard in found for row in shard) == list(range(1000))
    people = [{row["who"].lower() for row in shard} for shard in found]
    assert sum(map(len, people)) == len(set().union(*people)) == 97


@pytest.mark.usefixtures("small")
def test_what_a_shard_holds_does_not_depend_on_the_order_or_the_pieces_in_which_rows_came(tmp_path: Path) -> None:
    rows = [(f"u{n % 97}", "x" * (n % 50), n) for n in range(500)]
    found = []
    for seed, piece in ((1, 3), (2, 100), (3, 500)):
        random.Random(seed).shuffle(rows)
        (tmp_path / str(seed)).mkdir()
        pieces = (table(*rows[at : at + piece]) for at in range(0, 500, piece))
        found.append([sorted(shard.read()["n"].to_pylist()) for shard in shuffle(pieces, "who", SCHEMA, tmp_path / str(seed))])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("first", ["small", "large"])
def test_small_rows_first_and_large_ones_then_make_shards_of_a_bounded_size(tmp_path: Path, first: str) -> None:
    small = [table(*((f"u{n}", "x" * 100, n) for n in range(20_000)))]
    large = [table(*((f"v{n}", "x" * 40_000, n) for n in range(at, at + 200))) for at in range(0, 6_000, 200)]
    found = shuffle(iter(small + large if first == "small" else large + small), "who", SCHEMA, tmp_path)
    sizes = [shard.read().nbytes for shard in found]
    assert max(sizes) < 1.2 * shuffling.SHARD_BYTES
    assert sum(shard.rows for shard in found) == 26_000


@pytest.mark.usefixtures("small")
def test_one_text_with_more_rows_than_a_shard_holds_is_one_shard(tmp_path: Path) -> None:
    found = shuffle((table(*(("u1", "x" * 100, n) for n in range(200))) for _ in range(3)), "who", SCHEMA, tmp_path)
    assert [shard.rows for shard in found] == [600]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("number", [30, 500])
def test_rows_that_do_not_count_come_along_and_change_no_shard(tmp_path: Path, number: int) -> None:
    schema = SCHEMA.append(pa.field("old", pa.bool_()))
    new = table(*((f"u{n % 97}", "x" * (n % 50), n) for n in range(number))).append_column("old", pa.array([False] * number))
    found = []
    for name, tables in (("alone", [new]), ("with old rows", [new, new.set_column(3, "old", pa.array([True] * number))])):
        (tmp_path / name).mkdir()
        found.append([shard.read() for shard in shuffle(iter(tables), "who", schema, tmp_path / name, uncounted="old")])
    counted = [[sorted(shard.filter(pc.invert(shard["old"]))["n"].to_pylist()) for shard in one] for one in found]
    assert counted[0] == counted[1]
    assert [sum(shard["old"].to_pylist()) for shard in found[1]] == list(map(len, counted[0]))


def test_no_rows_are_one_empty_shard(tmp_path: Path) -> None:
    [shard] = shuffle(iter(()), "who", SCHEMA, tmp_path)
    assert shard.read().equals(SCHEMA.empty_table())


def test_few_rows_stay_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    rows = table(*((f"u{n}", "", n) for n in range(200)))
    [shard] = shuffle([rows], "who", SCHEMA, tmp_path)
    assert shard.read().equals(rows)


def test_what_is_added_is_spilled_and_does_not_stay_in_memory(tmp_path: Path) -> None:
    before, most = pa.total_allocated_bytes(), 0

    def pieces() -> Iterator[pa.Table]:
        nonlocal most
        for at in range(100):
            yield table(*((f"u{n}", "x" * 2_000, n) for n in range(at * 1_000, at * 1_000 + 1_000)))
            most = max(most, pa.total_allocated_bytes() - before)

    found = shuffle(pieces(), "who", SCHEMA, tmp_path)
    assert sum(shard.rows for shard in found) == 100_000
    assert most < 4.2 * shuffling.SPILL_BYTES
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_what_several_processes_have_spilled_is_put_together_by_bucket(tmp_path: Path) -> None:
    files = [
        spill(table(*((f"u{n % 7}", "", number) for n in range(20))), "who", tmp_path / f"{number}.arrow")
        for number in range(3)
    ]
    [shard] = shards(files, SCHEMA)
    assert sorted(shard.read()["n"].to_pylist()) == [0] * 20 + [1] * 20 + [2] * 20


@pytest.mark.parametrize("how", ["gone", "folder gone", "cut", "emptied"])
def test_spilled_rows_that_vanish_from_the_temporary_folder_are_an_error(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "spill"
    folder.mkdir()
    [shard] = shuffle([table(("a", "", 1), ("a", "", 2))], "who", SCHEMA, folder)
    [(path, *_)] = shard.pieces
    if how == "gone":
        path.unlink()
    elif how == "folder gone":
        shutil.rmtree(folder)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        spill(SCHEMA.empty_table(), "who", path)
    with pytest.raises(StorageError, match=r"run this again\.$"):
        shard.read()


def test_a_shard_that_lacks_rows_is_an_error(tmp_path: Path) -> None:
    [shard] = shuffle([table(("a", "", 1), ("a", "", 2))], "who", SCHEMA, tmp_path)
    with pytest.raises(StorageError, match=r"^Of 3 rows of a shard, only 2 are in .+: run this again\.$"):
        Shard((shard.pieces[0]._replace(rows=3),), SCHEMA).read()


def test_a_full_temporary_folder_is_a_sentence_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for fails in ("pyarrow.ipc.new_file", "cio_pipeline.tables.files.spill_folder"):
        with monkeypatch.context() as disk:
            disk.setattr(fails, full)
            with (
                pytest.raises(StorageError, match=r"^The temporary folder /.+ is full: free some space"),
                temporary_folder() as folder,
            ):
                shuffle([table(("a", "", 1))], "who", SCHEMA, folder)
