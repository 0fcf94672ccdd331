"""What each day says about people, stored so that a day looks up only its own people.

That is: who is identified, with which email (R1: facts), which anonymous id belongs to whom (R16: stitching), and which names
belong to the same person (R21: suppression). It includes the history before the first day (R18).

Each row belongs to one day, so days may be learned in any order, and a day that is learned again replaces its rows. The history
before the first partition is stored as a day that sorts before all others.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from hashlib import blake2b
from typing import Any

import pandas as pd
import pyarrow as pa
import sqlalchemy as sa

from cio_pipeline.state.database import CUT_OFF_SECONDS, chunks, connect, execute_by_driver, reading, values, writing
from cio_pipeline.state.identity_queries import identified_with, known_before, last_emails, merges_between
from cio_pipeline.state.identity_tables import (
    COLUMNS,
    LOOKED_UP,
    VERSION,
    derived_days,
    emails,
    learned_days,
    links,
    metadata,
)
from cio_pipeline.state.learned import Learned, RowFile, bound
from cio_pipeline.tables.files import temporary_folder

IDS_PER_QUERY = 10_000


class Identities:
    """The identities of all days, in the database at an SQLAlchemy URL."""

    def __init__(self, url: str, cut_off_seconds: int = CUT_OFF_SECONDS) -> None:
        self._engine = connect(url, metadata, VERSION, cut_off_seconds)

    def counts_if_learned_from(self, day: str, setting: str, source_fingerprint: str) -> Counter[str] | None:
        """Returns the counts that `replace` returned for the same day, setting and fingerprint, or None if it was not called
        with them, or the day has been learned differently since."""
        query = sa.select(learned_days.c.counts).where(
            learned_days.c.day == day,
            learned_days.c.setting == setting,
            learned_days.c.source_fingerprint == source_fingerprint,
        )
        with reading(self._engine) as connection:
            counts = connection.execute(query).scalar()
        return None if counts is None else Counter(json.loads(counts))

    def counts(self, day: str) -> Counter[str]:
        """Returns the counts that `replace` returned when the day was last learned; empty if it never was."""
        query = sa.select(learned_days.c.counts).where(learned_days.c.day == day)
        with reading(self._engine) as connection:
            return Counter(json.loads(connection.execute(query).scalar() or "{}"))

    def replace(
        self, day: str, setting: str, events: int, learned: Iterable[Learned], source_fingerprint: str = ""
    ) -> Counter[str]:
        """Replaces what is stored about a day.

        setting: the setting it was learned under; events: the number of the day's events; learned: what they say, part by part;
        source_fingerprint: identifies the events and the code. Returns the number of people, identified people, emails and
        anonymous ids named. All of `learned` is first written to temporary files, because deliveries wait while the database is
        written.
        """
        counts, content_hash = Counter[str](), 0
        with temporary_folder() as folder, ExitStack() as stack:
            files = {table: stack.enter_context(RowFile(folder, table, columns)) for table, columns in COLUMNS.items()}
            for part in learned:
                counts.update(part.counts)
                content_hash += part.content_hash
                for table, file in files.items():
                    file.add(part.rows[table.name])
            with self._writing() as transaction:
                for table in (*LOOKED_UP, learned_days):
                    transaction.execute(sa.delete(table).where(table.c.day == day))
                for table, file in files.items():
                    for batch in file.read():
                        self._insert(transaction, table, batch, day)
                hashes = {"content_hash": f"{content_hash % 2**128:032x}", "source_fingerprint": source_fingerprint}
                row = {"day": day, "setting": setting, "events": events, "counts": json.dumps(counts), **hashes}
                transaction.execute(sa.insert(learned_days), row)
        return counts

    def known_before(self, day: str, distinct_ids: list[str]) -> pd.DataFrame:
        """Returns what all days before `day` say about these distinct_ids: a row for each about which anything is known.

        Columns as in `facts.learn`: distinct_id, identified (bool), email and email_set_at (microseconds since 1970; both None
        if no email is known).
        """
        rows = self._rows_for(distinct_ids, lambda wanted: known_before(day, wanted)) if self._knows_before(day) else []
        frame = pd.DataFrame(rows, columns=["distinct_id", "identified", "email", "email_set_at"], dtype=object)
        return frame.assign(identified=frame["identified"].astype(bool))

    def linked(self, names: Iterable[str]) -> set[str]:
        """Returns all distinct_ids, and emails in lower case, that are linked to these, directly or through others (R21).

        Each round looks up what the previous one has added, so the time depends only on the number of linked names.
        """
        linked = new = set(names)
        while new:
            with reading(self._engine) as connection:
                partners = _partners(connection, links.c.name, links.c.distinct_id, new)
                partners |= _partners(connection, links.c.distinct_id, links.c.name, new)
            new = partners - linked
            linked = linked | new
        return linked

    def all_names(self) -> Iterator[str]:
        """Yields every distinct_id and email that is linked to another one, possibly more than once."""
        with reading(self._engine) as connection:
            for column in (links.c.name, links.c.distinct_id, emails.c.email):
                rows = connection.execute(sa.select(column).distinct(), execution_options={"yield_per": IDS_PER_QUERY})
                yield from rows.scalars()

    def merges_between(self, first: str, day: str, anonymous_ids: list[str]) -> pd.DataFrame:
        """Returns the merges of these anonymous ids from the day `first` on, and before `day`: `stitching.MERGE_COLUMNS`."""
        rows = self._rows_for(anonymous_ids, lambda wanted: merges_between(first, day, wanted))
        frame = pd.DataFrame(rows, columns=["anonymous_id", "distinct_id", "timestamp", "uuid"])
        return frame.assign(timestamp=pd.to_datetime(frame["timestamp"].astype("int64"), unit="us", utc=True))

    def shared_emails(self, day: str) -> dict[str, list[str]]:
        """Returns the emails, in lower case, that were set on the day and are the last email of several identified
        distinct_ids, each with these distinct_ids, sorted.

        Only distinct_ids that ever had such an email (`links`) are looked up.
        """
        with reading(self._engine) as connection:
            of_day = connection.execute(sa.select(emails.c.email).where(emails.c.day == day)).scalars().all()
            set_then = {email.lower() for email in of_day}
        candidates = self._rows_for(list(set_then), identified_with)
        several = Counter(email for email, _ in candidates)
        ids = [distinct_id for email, distinct_id in candidates if several[email] > 1]
        last = dict(self._rows_for(ids, last_emails))
        shared = defaultdict[str, list[str]](list)
        for distinct_id in sorted(last):
            shared[last[distinct_id].lower()].append(distinct_id)
        return {email: sharing for email, sharing in shared.items() if len(sharing) > 1 and email in set_then}

    def last_derived(self) -> str | None:
        """Returns the last day that was derived, or None if none was."""
        with reading(self._engine) as connection:
            return connection.execute(sa.select(sa.func.max(derived_days.c.day))).scalar()

    def unlearned(self, days: list[str], setting: str | None = None) -> list[str]:
        """Returns those of the days that were never learned under this setting or, without one, under any."""
        with reading(self._engine) as connection:
            known = sa.select(learned_days.c.day)
            if setting is not None:
                known = known.where(learned_days.c.setting == setting)
            learned = set(connection.execute(known).scalars())
        return [day for day in days if day not in learned]

    def inputs_fingerprint(self, day: str, stitched_days: int) -> str:
        """Returns a fingerprint of everything that earlier days contribute to this one. Take it before the look-ups, and pass
        it to `mark_derived` afterwards.

        stitched_days: the number of days before it that contribute their events, too (R16: stitching).
        """
        return _fingerprint(self._learned_days(), day, stitched_days)

    def mark_derived(self, day: str, inputs_fingerprint: str) -> None:
        """Records the `inputs_fingerprint` that the day was derived with."""
        with self._writing() as transaction:
            transaction.execute(sa.delete(derived_days).where(derived_days.c.day == day))
            transaction.execute(sa.insert(derived_days), {"day": day, "inputs_fingerprint": inputs_fingerprint})

    def out_of_date(self, stitched_days: int) -> list[str]:
        """Returns the days that were derived before an earlier day was learned, or learned again with another result."""
        with reading(self._engine) as connection:
            derived = connection.execute(sa.select(derived_days).order_by(derived_days.c.day)).all()
        learned = self._learned_days()
        return [day for day, fingerprint in derived if fingerprint != _fingerprint(learned, day, stitched_days)]

    @staticmethod
    def _insert(transaction: sa.Connection, table: sa.Table, rows: pa.RecordBatch, day: str) -> None:
        """Inserts the rows with the driver itself, which takes half the time. A link that exists stays."""
        columns = [bound(rows[name]) for name in rows.schema.names]
        names = list(rows.schema.names)
        if "day" in table.c:
            names, columns = [*names, "day"], [*columns, [day] * len(rows)]
        sql = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - our names
        if table is links:
            sql += " ON CONFLICT DO NOTHING"
        execute_by_driver(transaction, sql, list(zip(*columns, strict=True)))

    def _knows_before(self, day: str) -> bool:
        with reading(self._engine) as connection:
            return (
                connection.execute(sa.select(learned_days.c.day).where(learned_days.c.day < day).limit(1)).first() is not None
            )

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that excludes other writers. SQLite has only one anyway; on PostgreSQL a table is locked."""
        with writing(self._engine) as transaction:
            if self._engine.dialect.name == "postgresql":
                transaction.exec_driver_sql("LOCK TABLE learned_days IN SHARE ROW EXCLUSIVE MODE")
            yield transaction

    def _learned_days(self) -> pd.DataFrame:
        """Returns the learned days, in order: day, events, and content_hash, which covers the day and all days before it."""
        content_hash = blake2b(digest_size=16)
        so_far = []
        learned = self._each_learned_day()
        for row in learned.itertuples():
            content_hash.update(f"{row.day} {row.content_hash} ".encode())
            so_far.append(content_hash.hexdigest())
        return learned.assign(content_hash=so_far)

    def _each_learned_day(self) -> pd.DataFrame:
        """Returns the learned days, in order: day, events, and content_hash, which covers the day alone."""
        query = sa.select(learned_days.c.day, learned_days.c.events, learned_days.c.content_hash).order_by(learned_days.c.day)
        with reading(self._engine) as connection:
            return pd.DataFrame(connection.execute(query).all(), columns=["day", "events", "content_hash"])

    def _rows_for(self, ids: list[str], query: Callable[[sa.ColumnElement[str]], sa.Select[Any]]) -> list[Any]:
        """Returns the rows of a query for these ids, each looked up once. `query` is called with a column of ids."""
        with reading(self._engine) as connection:
            return [
                tuple(row)  # pandas is slow with SQLAlchemy's own rows
                for chunk in chunks(iter(sorted(set(ids))), IDS_PER_QUERY)
                for row in connection.execute(query(values(self._engine, chunk))).all()
            ]


def _partners(connection: sa.Connection, column: sa.Column[str], partner: sa.Column[str], values: set[str]) -> set[str]:
    """Returns the values of the column `partner` in the rows whose `column` has one of these values."""
    partners = set[str]()
    for chunk in chunks(iter(values), IDS_PER_QUERY):
        partners.update(connection.execute(sa.select(partner).where(column.in_(chunk))).scalars())
    return partners


def _fingerprint(learned: pd.DataFrame, day: str, stitched_days: int) -> str:
    """Returns a hash of what was learned from earlier days, and of the number of events of those that R16 may stitch from."""
    before = learned[learned["day"] < day]
    first = str(date.fromisoformat(day) - timedelta(days=stitched_days))
    events = before.loc[before["day"] >= first, ["day", "events"]].to_numpy().tolist()
    content_hash = before["content_hash"].iloc[-1] if len(before) else ""
    return f"{content_hash} {blake2b(repr(events).encode(), digest_size=8).hexdigest()}"
