"""The database by its URL, SQLite or PostgreSQL: it makes and changes its own schema, locks, and speaks plainly when away."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from cio_pipeline.database import DatabaseError, Migrations, alone, connect
from cio_pipeline.ledger.ledger import Ledger
from cio_pipeline.ledger.state import name_hash, value_hash
from cio_pipeline_tests.postgres import PASSWORD, URL_PASSWORD, database

DAY = "2026-03-02"
OLD_CUSTOMER = bytes.fromhex("6c8fd0031376afc4e258e1554b6d880a")
OLD_STATE = bytes.fromhex("09a2b239afd2130bcea6143a00000014")
"""How the first version kept that id:u1 has the plan "pro" since second 20."""

HOLD = """
import sys, time
from cio_pipeline.ledger.ledger import Ledger
with Ledger(sys.argv[1]).alone(lambda: None):
    print("held", flush=True)
    time.sleep(600)
"""


def test_many_that_start_at_once_find_one_whole_schema(database_url: str) -> None:
    together = threading.Barrier(8)

    def start(_: int) -> Ledger:
        together.wait()
        return Ledger(database_url)

    with ThreadPoolExecutor(8) as threads:
        ledgers = list(threads.map(start, range(8)))
    assert all(ledger.refused_by_reason() == {} for ledger in ledgers)


def test_a_ledger_of_the_first_version_is_brought_up_and_keeps_what_it_knew(database_url: str) -> None:
    old = sa.MetaData()
    deliveries = sa.Table(
        "deliveries",
        old,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("day", sa.String),
        sa.Column("event_uuids", sa.LargeBinary),
    )
    states = sa.Table(
        "customer_states", old, sa.Column("customer", sa.LargeBinary, primary_key=True), sa.Column("state", sa.LargeBinary)
    )
    texts = [sa.Column(name, sa.String) for name in ("kind", "reason", "detail", "operation")]
    keys = [sa.Column(name, sa.String, primary_key=True) for name in ("day", "item")]
    refusals = sa.Table("refusals", old, *keys, *texts, sa.Column("refused_at", sa.DateTime))
    engine = connect(database_url, old)
    upsert = '{"identifiers":{"id":"u1"},"timestamp":20,"attributes":{"plan":"pro"}}'
    by_v1 = '{"id":"01","name":"large","timestamp":20,"type":"event","data":{}}'
    with engine.begin() as transaction:
        transaction.execute(sa.insert(deliveries), {"day": DAY, "event_uuids": bytes(range(16))})
        transaction.execute(sa.insert(states), {"customer": OLD_CUSTOMER, "state": OLD_STATE})
        common = {"day": DAY, "reason": "invalid", "detail": "no", "refused_at": sa.func.now()}
        for item, kind, operation in (("id:u1#0", "customer", upsert), ("e1", "event", by_v1)):
            transaction.execute(sa.insert(refusals).values(item=item, kind=kind, operation=operation, **common))
    for _ in range(2):
        ledger = Ledger(database_url)
        assert ledger.delivered(DAY).tolist() == [bytes(range(16))]
        assert ledger.states(["id:u1"]) == {"id:u1": {name_hash("plan"): (value_hash(b'"pro"'), 20)}}
        [refusal] = ledger.refused(DAY).values()
        assert (refusal.key, refusal.operation, refusal.kind) == ("id:u1", upsert, "customer")
        assert refusal.state == {name_hash("plan"): (value_hash(b'"pro"'), 20)}


def test_migrations_are_done_once_and_in_order(database_url: str) -> None:
    done: list[str] = []
    tables = sa.MetaData()
    sa.Table("things", tables, sa.Column("id", sa.Integer, primary_key=True))
    connect(database_url, tables)
    first = Migrations("things", (lambda _: done.append("one"),))
    second = Migrations("things", (*first.steps, lambda _: done.append("two"), lambda _: done.append("three")))
    for migrations in (first, first, second, second):
        connect(database_url, tables, migrations)
    assert done == ["one", "two", "three"]
    with pytest.raises(DatabaseError, match="CIO_LEDGER_URL names a database of a newer version"):
        connect(database_url, tables, first)


def test_a_migration_that_fails_leaves_everything_as_it_was(database_url: str) -> None:
    tables = sa.MetaData()
    sa.Table("things", tables, sa.Column("id", sa.Integer, primary_key=True))
    engine = connect(database_url, tables)

    def half(transaction: sa.Connection) -> None:
        transaction.execute(sa.text("DROP TABLE things"))
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        connect(database_url, tables, Migrations("things", (half,)))
    assert "things" in sa.inspect(engine).get_table_names()


def test_the_second_waits_says_so_once_and_goes_on_when_the_first_is_killed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.database.ASK_AGAIN_SECONDS", 0.02)
    engine = connect(database_url, sa.MetaData())
    holder = subprocess.Popen([sys.executable, "-c", HOLD, database_url], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waited: list[bool] = []

    def kill() -> None:
        waited.append(True)
        holder.kill()

    with alone(engine, kill):
        assert waited == [True]
    holder.wait()
    holder.stdout.close()
    with alone(engine, kill):
        assert waited == [True]


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
    (tmp_path / "ledger.db").write_text("this is no database, and long enough to be read as one. " * 20)
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "ledger.db", tmp_path / "folder", tmp_path / "ledger.db" / "beneath"):
        with pytest.raises(DatabaseError, match=r"^The ledger's database \(CIO_LEDGER_URL\) cannot be used: .+\.$"):
            Ledger(f"sqlite:///{path}")


def test_a_database_that_goes_away_says_so_and_the_next_try_is_fresh(postgres_server: str) -> None:
    with database(postgres_server, "gone") as url:
        ledger = Ledger(url)
        with connect(postgres_server, sa.MetaData()).begin() as admin:
            admin.execute(sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'gone'"))
        with pytest.raises(DatabaseError, match="CIO_LEDGER_URL"):
            ledger.refused_by_reason()
        assert ledger.refused_by_reason() == {}
