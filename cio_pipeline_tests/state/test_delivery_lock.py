"""One delivery at a time, on SQLite and PostgreSQL; and one that has lost its lock notes and sends nothing more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sa

from cio_pipeline.attribute_state import pack
from cio_pipeline.customerio.client import TrackClient
from cio_pipeline.customerio.delivery import deliver
from cio_pipeline.sandbox.customerio.server import CustomerioServer
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.database import DatabaseError, connect
from cio_pipeline.state.delivery_lock import LockLost, hold_delivery_lock
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.rules.streams import Frames, event, tables

DAY = "2026-03-02"
ANSWER = Acknowledgement(customers={"id:u1": pack({b"12345": (b"123456", 1)})})

HOLD = """
import sys, time
from cio_pipeline.state.ledger import Ledger
with Ledger(sys.argv[1]).hold_delivery_lock(lambda: None):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def lose(database_url: str) -> Callable[[], None]:
    """Ends the session that holds the lock, or removes the file."""

    def lose() -> None:
        engine = connect(database_url, sa.MetaData())
        if engine.dialect.name == "sqlite":
            Path(f"{engine.url.database}.lock").unlink()
            return
        with engine.begin() as transaction:
            killed = sa.text("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'")
            assert transaction.execute(killed).scalars().all() == [True]

    return lose


def test_the_second_waits_says_so_once_and_goes_on_when_the_first_is_killed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.state.delivery_lock.RETRY_SECONDS", 0.02)
    engine = connect(database_url, sa.MetaData())
    holder = subprocess.Popen([sys.executable, "-c", HOLD, database_url], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waited: list[bool] = []

    def kill() -> None:
        waited.append(True)
        holder.kill()

    with hold_delivery_lock(engine, kill):
        assert waited == [True]
    holder.wait()
    holder.stdout.close()
    with hold_delivery_lock(engine, kill):
        assert waited == [True]


def test_who_holds_the_lock_acknowledges_and_who_has_ended_may_begin_again(database_url: str) -> None:
    ledger = Ledger(database_url)
    for _ in range(2):
        with ledger.hold_delivery_lock(lambda: None):
            ledger.acknowledge(DAY, ANSWER)
    assert ledger.states(["id:u1"])


def test_nobody_sends_without_the_lock(database_url: str) -> None:
    ledger = Ledger(database_url)
    for _ in range(2):
        with pytest.raises(LockLost):
            ledger.check_lock()
        with ledger.hold_delivery_lock(lambda: None):
            ledger.check_lock()
    ledger.acknowledge(DAY, ANSWER)


def test_who_has_lost_the_lock_acknowledges_nothing(database_url: str, lose: Callable[[], None]) -> None:
    ledger = Ledger(database_url)
    with ledger.hold_delivery_lock(lambda: None):
        lose()
        with pytest.raises(LockLost, match=r"^This delivery has lost its lock on the ledger \(CIO_LEDGER_URL\)"):
            ledger.acknowledge(DAY, ANSWER)
    assert ledger.states(["id:u1"]) == {}
    with ledger.hold_delivery_lock(lambda: None):
        ledger.acknowledge(DAY, ANSWER)


def test_a_second_delivery_that_began_shuts_out_the_first_whatever_its_lock_says(
    database_url: str, lose: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Ledger(database_url), Ledger(database_url)
    with first.hold_delivery_lock(lambda: None):
        lose()
        with second.hold_delivery_lock(lambda: pytest.fail("nobody holds the lock")):
            assert first._lock is not None
            first._lock = (first._lock[0], lambda _: True)
            with pytest.raises(LockLost):
                first.acknowledge(DAY, ANSWER)
            second.acknowledge(DAY, ANSWER)
    assert len(first.states(["id:u1"])) == 1


def test_a_lock_file_that_is_replaced_is_lost(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    with ledger.hold_delivery_lock(lambda: None):
        (tmp_path / "other").touch()
        (tmp_path / "other").rename(tmp_path / "ledger.db.lock")
        with pytest.raises(LockLost):
            ledger.acknowledge(DAY, ANSWER)


def test_a_lock_that_is_lost_before_its_holder_has_signed_is_not_taken(database_url: str) -> None:
    ledger = Ledger(database_url)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cio_pipeline.state.ledger.hold_delivery_lock", lost_at_once)
        with pytest.raises(LockLost), ledger.hold_delivery_lock(lambda: None):
            pytest.fail("the lock is not held")


def lost_at_once(engine: sa.Engine, waiting: Callable[[], None]) -> Any:
    return nullcontext(lambda _: False)


def test_a_delivery_that_loses_its_lock_stops_and_the_next_sends_the_rest(
    database_url: str, lose: Callable[[], None], workspace: CustomerioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.customerio.batches.MAX_REQUEST_BYTES", 400)
    made = tables(*(event(f"e{n}", at=f"2026-03-02T10:{n:02d}Z") for n in range(12)))
    client = TrackClient(workspace.url, "sandbox", "sandbox-key", 1000)
    ledger, shards = Ledger(database_url), [made.shard]
    answer, requests = workspace.answer, 0

    def losing(*request: Any) -> Any:
        nonlocal requests
        requests += 1
        if requests == 3:
            lose()
        return answer(*request)

    monkeypatch.setattr(workspace, "answer", losing)
    with pytest.raises(LockLost), ledger.hold_delivery_lock(lambda: None):
        deliver(DAY, shards, ledger, client)
    assert requests == 3
    delivered = len(ledger.delivered(DAY))
    assert 0 < delivered < 12
    with ledger.hold_delivery_lock(lambda: None):
        assert deliver(DAY, shards, ledger, client).counts["events sent"] == 12 - delivered
    assert workspace.workspace.totals()["events"] == 12


def test_a_delivery_whose_lock_went_before_its_first_request_sends_none(
    database_url: str, lose: Callable[[], None], workspace: CustomerioServer
) -> None:
    made, ledger = tables(event("e")), Ledger(database_url)
    with pytest.raises(LockLost), ledger.hold_delivery_lock(lambda: None):
        deliver(DAY, after(lose, made), ledger, TrackClient(workspace.url, "sandbox", "sandbox-key", 1000))
    assert workspace.requests == []


def after(lose: Callable[[], None], made: Frames) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """The tables, read after the lock was lost."""
    lose()
    yield made.shard


def test_a_lock_file_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    (tmp_path / "ledger.db.lock").mkdir()
    with pytest.raises(
        DatabaseError, match=r"lock file .*ledger\.db\.lock cannot be used: Is a directory\. This process must be able"
    ):
        ledger.hold_delivery_lock(lambda: None).__enter__()


def test_a_lock_file_that_others_could_read_and_so_lock_becomes_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db.lock"
    path.touch(0o644)
    with Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").hold_delivery_lock(lambda: None):
        assert path.stat().st_mode & 0o777 == 0o600


def test_an_error_of_another_file_is_not_blamed_on_the_lock_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="another file"),
        Ledger(f"sqlite:///{tmp_path / 'ledger.db'}").hold_delivery_lock(lambda: None),
    ):
        raise OSError(28, "No space left on device", "another file")
