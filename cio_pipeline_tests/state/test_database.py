"""The database by its URL, SQLite or PostgreSQL: it makes its own tables, is used by many at once, and speaks plainly."""

from __future__ import annotations

import gc
import os
import resource
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import sqlalchemy as sa

from cio_pipeline.attribute_state import name_hash, pack
from cio_pipeline.packed_ids import pack_ids
from cio_pipeline.state import identity_tables
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.database import DatabaseError, connect, reading, values, writing
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.postgresql import MAX_CONNECTIONS
from cio_pipeline_tests.postgres import PASSWORD, URL_PASSWORD, database

DAY = "2026-03-02"

AT_WORK = """
import sys, threading, uuid
import pandas as pd
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.attribute_state import pack
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.learned import Learned
url, number = sys.argv[1], int(sys.argv[2])
ids = [f"u{number}-{n}" for n in range(2_000)]
facts = pd.DataFrame([(who, True, None, None) for who in ids], columns=["distinct_id", "identified", "email", "email_set_at"])
nobody = pd.DataFrame(columns=["anonymous_id", "distinct_id", "timestamp", "uuid"])
nobody = nobody.astype({"timestamp": "datetime64[us, UTC]"})
ledger, identities, state = Ledger(url), Identities(url), {b"12345": (b"123456", 1)}
for turn in range(3):
    identities.replace(f"2026-03-{number + 1:02d}", "set", 1, [Learned.of(facts.astype({"identified": bool}), nobody)])
    assert identities.known_before("2026-04-01", ids)["identified"].tolist() == [True] * len(ids)
    ledger.acknowledge("2026-03-01", Acknowledgement(customers={f"id:{number}-{turn}": pack(state)}))
print("done")
"""


def engine_of(url: str) -> sa.Engine:
    return connect(url, sa.MetaData())


def test_many_that_start_at_once_find_one_whole_schema(database_url: str) -> None:
    together = threading.Barrier(8)

    def start(_: int) -> Ledger:
        together.wait()
        return Ledger(database_url)

    with ThreadPoolExecutor(8) as threads:
        ledgers = list(threads.map(start, range(8)))
    assert all(ledger.refused_by_reason() == {} for ledger in ledgers)


def test_many_processes_make_the_tables_learn_look_up_and_acknowledge_at_once(database_url: str) -> None:
    runs = [
        subprocess.Popen([sys.executable, "-c", AT_WORK, database_url, str(number)], stdout=subprocess.PIPE, text=True)
        for number in range(4)
    ]
    assert [run.communicate()[0] for run in runs] == ["done\n"] * 4
    keys = [f"id:{number}-{turn}" for number in range(4) for turn in range(3)]
    assert len(Ledger(database_url).states(keys)) == 12
    assert Identities(database_url).unlearned([f"2026-03-{number:02d}" for number in range(1, 6)]) == ["2026-03-05"]


@pytest.mark.parametrize("stamp", [None, 1, 2, 99])
def test_the_tables_of_another_version_are_refused_in_a_sentence(database_url: str, stamp: int | None) -> None:
    """The first version's ledger had the stamp 2, or none."""
    with engine_of(database_url).begin() as transaction:
        for table in ("deliveries", "emails"):
            transaction.exec_driver_sql(f"CREATE TABLE {table} (day VARCHAR(10))")
        transaction.exec_driver_sql("CREATE TABLE schema_version (name VARCHAR(30) PRIMARY KEY, version INTEGER NOT NULL)")
        for name in ("ledger", "identities") if stamp else ():
            transaction.exec_driver_sql(f"INSERT INTO schema_version VALUES ('{name}', {stamp})")
    for part, opened in (("ledger", Ledger), ("identities", Identities)):
        with pytest.raises(DatabaseError, match=f"^CIO_LEDGER_URL names a database .+ whose tables of the {part} belong"):
            opened(database_url)


@pytest.mark.parametrize("change", ["ALTER TABLE refusals ADD COLUMN more INTEGER", "DROP TABLE deliveries"])
def test_a_stamp_that_its_tables_belie_is_refused(database_url: str, change: str) -> None:
    Ledger(database_url)
    with engine_of(database_url).begin() as transaction:
        transaction.exec_driver_sql(change)
    with pytest.raises(DatabaseError, match="name an empty database"):
        Ledger(database_url)


def test_a_process_has_one_engine_for_a_database_and_closing_it_closes_its_files(database_url: str) -> None:
    Ledger(database_url).refused_by_reason()
    once = open_files()
    for _ in range(20):
        Ledger(database_url).refused_by_reason()
        Identities(database_url).out_of_date(0)
    assert open_files() == once
    Ledger(database_url).close()
    assert open_files() < once
    assert Ledger(database_url).refused_by_reason() == {}


def test_many_threads_take_turns_with_few_connections_to_postgresql(postgres_server: str) -> None:
    at_work, most = list[int](), list[int]()

    def look(number: int) -> None:
        with reading(engine) as connection:
            at_work.append(number)
            connection.exec_driver_sql("SELECT pg_sleep(0.05)")
            most.append(len(at_work))
            at_work.remove(number)

    with database(postgres_server, "turns") as url:
        engine = engine_of(url)
        with ThreadPoolExecutor(12) as threads:
            list(threads.map(look, range(12)))
        engine.dispose()
    assert max(most) == MAX_CONNECTIONS


def open_files() -> int:
    gc.collect()  # closes what earlier tests have left open
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_sqlite_writes_is_its_owners_whatever_the_umask(tmp_path: Path) -> None:
    os.umask(0)
    (tmp_path / "old.db").touch(0o666)
    for name in ("new.db", "old.db"):
        ledger = Ledger(f"sqlite:///{tmp_path / name}")
        with ledger.hold_delivery_lock(lambda: None):
            ledger.acknowledge(DAY, Acknowledgement(customers={"id:u1": pack({name_hash("plan"): (b"123456", 1)})}))
            files = [path for path in tmp_path.iterdir() if path.name.startswith(name)]
            assert {path.name.removeprefix(name) for path in files} == {"", "-wal", "-shm", ".lock"}
            assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_look_ups_on_sqlite_neither_wait_for_a_writer_nor_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cio_pipeline.state.database.BUSY_SECONDS", 0)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger, known = Ledger(url), Identities(url)
    with engine_of(url).begin():
        assert known.known_before(DAY, ["u1"]).empty
        assert known.merges_between(DAY, DAY, ["u1"]).empty
        assert known.linked({"u1"}) == {"u1"}
        assert (known.unlearned([DAY]), known.out_of_date(0)) == ([DAY], [])
        assert known.inputs_fingerprint(DAY, 0)
        assert (ledger.refused_by_reason(), ledger.states(["id:u1"]), len(ledger.delivered(DAY))) == ({}, {}, 0)


def test_who_waits_too_long_for_a_writer_says_for_whom(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cio_pipeline.state.database.BUSY_SECONDS", 1)
    known, other = Identities(database_url), engine_of(database_url)
    with other.begin() as writing:
        writing.execute(sa.insert(identity_tables.learned_days), {"day": DAY})
        with pytest.raises(DatabaseError, match="was kept locked by another process for 1 seconds: run this again when"):
            known.mark_derived(DAY, "")


def test_threads_of_one_process_wait_for_each_other_however_long_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.state.database.BUSY_SECONDS", 0)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    known = Identities(url)
    with ThreadPoolExecutor(1) as thread, writing(engine_of(url)) as transaction:
        other = thread.submit(known.mark_derived, DAY, "")
        transaction.execute(sa.insert(identity_tables.derived_days), {"day": "2026-03-03"})
        assert wait([other], timeout=0.3).not_done
    other.result()
    assert known.out_of_date(0) == [DAY, "2026-03-03"]


def test_who_waits_for_a_writer_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cio_pipeline.state.sqlite.SILENT_SECONDS", 0.05)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    known, other = Identities(url), engine_of(url).connect()
    other.execute(sa.insert(identity_tables.derived_days), {"day": "2026-03-03"})
    done = threading.Timer(0.5, other.commit)
    done.start()
    known.mark_derived(DAY, "")
    done.join()
    other.close()
    assert known.out_of_date(0) == [DAY, "2026-03-03"]
    assert [record.getMessage() for record in caplog.records] == [
        "Another process is writing to the ledger's database (CIO_LEDGER_URL): waiting for it, at most 300 seconds."
    ]


def test_values_are_a_table_of_whatever_texts(database_url: str) -> None:
    odd = ["a\0b", r"a\0b", "'", '"', "ü€😀", "x" * 1_000_000, ""]
    engine = engine_of(database_url)
    with reading(engine) as connection:
        found = connection.execute(sa.select(values(engine, odd))).scalars().all()
        assert sorted(found) == sorted(odd)


def test_postgresql_notices_a_host_that_is_cut_off_in_seconds_and_waits_for_no_lock_without_end(postgres_server: str) -> None:
    with database(postgres_server, "keepalives") as url:
        for seconds, shown in ((60, ["20", "10", "4", "60000", "5min"]), (12, ["4", "2", "4", "12000", "5min"])):
            ledger = Ledger(url, seconds)
            with ledger.hold_delivery_lock(lambda: None), reading(connect(url, sa.MetaData(), None, seconds)) as connection:
                names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
                assert [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in (*names, "lock_timeout")] == shown


def test_a_wrong_postgresql_is_one_sentence_without_the_password(postgres_server: str) -> None:
    wrong_password = postgres_server.replace(URL_PASSWORD, "not-the-secret")
    no_database = postgres_server.removesuffix("postgres") + "nowhere"
    nobody_listens = f"postgresql://cio:{URL_PASSWORD}@127.0.0.1:1/cio"
    for url in (wrong_password, no_database, nobody_listens):
        with pytest.raises(DatabaseError, match=r"^The ledger's database \(CIO_LEDGER_URL\) cannot be used: .+\.$") as refused:
            Ledger(url)
        assert "\n" not in str(refused.value)
        assert not [secret for secret in (PASSWORD, URL_PASSWORD, "not-the-secret") if secret in str(refused.value)]


def test_a_wrong_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("this is not a database, and long enough to be read as one. " * 20)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "ledger.db", tmp_path / "folder", tmp_path / "ledger.db" / "beneath"):
        with pytest.raises(DatabaseError, match=r"^The ledger's database \(CIO_LEDGER_URL\) cannot be used: .+\.$"):
            Ledger(f"sqlite:///{path}")


def test_a_full_disk_is_suspected_where_sqlite_does_not_say_so_and_what_was_kept_stands(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    first, more = ulids(range(10)), ulids(range(10, 5000))
    ledger.acknowledge(DAY, Acknowledgement(event_ids=first))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "ledger.db-wal").stat().st_size, hard))
    try:
        with pytest.raises(DatabaseError, match=r"cannot be used: .+: is its disk full or read-only\?$"):
            ledger.acknowledge(DAY, Acknowledgement(event_ids=more))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(ledger.delivered(DAY)) == 10
    ledger.acknowledge(DAY, Acknowledgement(event_ids=more))
    assert len(ledger.delivered(DAY)) == 5000


def ulids(numbers: range) -> bytes:
    """ULIDs, packed."""
    packed: bytes = pack_ids([f"01ARYZ6S41{number:016d}" for number in numbers]).tobytes()
    return packed


def test_what_a_row_holds_is_in_no_error_nor_in_what_led_to_it(database_url: str) -> None:
    Identities(database_url)
    row = {"distinct_id": "jane@example.com", "day": DAY}
    with (
        pytest.raises(DatabaseError, match=r"cannot be used: \w+\.$") as refused,
        writing(engine_of(database_url)) as transaction,
    ):
        transaction.execute(sa.insert(identity_tables.identified), [row, row])
    assert "jane" not in str(refused.value)
    assert (refused.value.__cause__, refused.value.__context__) == (None, None)


def test_a_database_that_was_away_between_two_questions_is_not_noticed(postgres_server: str) -> None:
    with database(postgres_server, "gone") as url:
        ledger = Ledger(url)
        assert ledger.refused_by_reason() == {}
        with engine_of(postgres_server).begin() as admin:
            admin.execute(sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'gone'"))
        assert ledger.refused_by_reason() == {}
