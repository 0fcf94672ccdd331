"""What each day taught about each distinct_id (R1), kept so that a day looks up just its own people.

A row says what one day taught. What is known before a day is, of each distinct_id, whether any earlier day identified it and
the email that the last earlier day with one taught. A day that is learned again replaces its rows.
"""

from __future__ import annotations

import pandas as pd
import sqlalchemy as sa

from cio_pipeline.database import chunks, connect

metadata = sa.MetaData()

learned_days = sa.Table("learned_days", metadata, sa.Column("day", sa.String(10), primary_key=True))

identified = sa.Table(
    "identified",
    metadata,
    sa.Column("distinct_id", sa.String, primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True, index=True),
)

emails = sa.Table(
    "emails",
    metadata,
    sa.Column("distinct_id", sa.String, primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True, index=True),
    sa.Column("email", sa.String, nullable=False),
)

wanted = sa.Table(
    "wanted",
    sa.MetaData(),
    sa.Column("distinct_id", sa.String, primary_key=True),
    prefixes=["TEMPORARY"],
)

CHUNK = 10_000


class Identities:
    """The identities of all days, in the database at an SQLAlchemy URL."""

    def __init__(self, url: str) -> None:
        self._engine = connect(url, metadata)

    def replace(self, day: str, learned: list[pd.DataFrame]) -> None:
        """Keeps what `day` (YYYY-MM-DD) taught, instead of what was kept of it: frames as `facts.learn` gives them."""
        with self._engine.begin() as transaction:
            for table in (identified, emails, learned_days):
                transaction.execute(sa.delete(table).where(table.c.day == day))
            for frame in learned:
                ids = frame.loc[frame["identified"], "distinct_id"].tolist()
                told = frame[frame["email"].notna()]
                pairs = zip(told["distinct_id"].tolist(), told["email"].tolist(), strict=True)
                _insert(transaction, identified, [{"distinct_id": i, "day": day} for i in ids])
                _insert(transaction, emails, [{"distinct_id": i, "day": day, "email": e} for i, e in pairs])
            transaction.execute(sa.insert(learned_days), {"day": day})

    def before(self, day: str, distinct_ids: list[str]) -> pd.DataFrame:
        """What all days before `day` taught about these distinct_ids: distinct_id, identified, email (None: not known)."""
        with self._engine.begin() as transaction:
            wanted.create(transaction)
            _insert(transaction, wanted, [{"distinct_id": distinct_id} for distinct_id in dict.fromkeys(distinct_ids)])
            rows = transaction.execute(_known_before(day)).all()
            wanted.drop(transaction)
        frame = pd.DataFrame(rows, columns=["distinct_id", "identified", "email"], dtype=object)
        return frame.assign(identified=frame["identified"].astype(bool))

    def missing(self, days: list[str]) -> list[str]:
        """Those of the days that were never learned."""
        with self._engine.connect() as connection:
            known = set(connection.execute(sa.select(learned_days.c.day)).scalars())
        return [day for day in days if day not in known]


def _known_before(day: str) -> sa.Select[tuple[str, bool, str | None]]:
    """Two look-ups in an index for each wanted distinct_id, however many days there are."""
    was_identified = sa.exists().where(identified.c.distinct_id == wanted.c.distinct_id, identified.c.day < day)
    last_email = (
        sa.select(emails.c.email)
        .where(emails.c.distinct_id == wanted.c.distinct_id, emails.c.day < day)
        .order_by(emails.c.day.desc())
        .limit(1)
        .scalar_subquery()
    )
    return sa.select(wanted.c.distinct_id, was_identified.label("identified"), last_email.label("email"))


def _insert(transaction: sa.Connection, table: sa.Table, rows: list[dict[str, str]]) -> None:
    for chunk in chunks(iter(rows), CHUNK):
        transaction.execute(sa.insert(table), chunk)
