"""The tables of what each day says about people, in the database and in memory."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from cio_pipeline.state.database import SchemaVersion, Text

VERSION = SchemaVersion("identities", 5)
"""To be increased when these tables, or what they mean, change: there are no migrations."""

HISTORY_PARTITION = "0000-00-00"
"""The day of all that happened before the first partition."""

metadata = sa.MetaData()


def _day(**options: Any) -> sa.Column[str]:
    return sa.Column("day", sa.String(10), **options)


learned_days = sa.Table(
    "learned_days",
    metadata,
    _day(primary_key=True),
    sa.Column("setting", sa.String),
    sa.Column("events", sa.Integer),
    sa.Column("content_hash", sa.String(32)),  # of the day's rows in the tables of LOOKED_UP
    sa.Column("source_fingerprint", sa.String),  # of the events and the code that the day was learned from
    sa.Column("counts", sa.String),  # JSON: the number of people, identified people, emails and anonymous ids named
)

derived_days = sa.Table(
    "derived_days",
    metadata,
    _day(primary_key=True),
    sa.Column("inputs_fingerprint", sa.String),  # `Identities.inputs_fingerprint` when the day was derived
)
identified = sa.Table(
    "identified",
    metadata,
    sa.Column("distinct_id", Text, primary_key=True),
    _day(primary_key=True, index=True),
    sqlite_with_rowid=False,
)
emails = sa.Table(
    "emails",
    metadata,
    sa.Column("distinct_id", Text, primary_key=True),
    _day(primary_key=True, index=True),
    sa.Column("email", Text, nullable=False),
    sa.Column("microseconds", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
merges = sa.Table(
    "merges",
    metadata,
    sa.Column("anonymous_id", Text, nullable=False),
    _day(nullable=False, index=True),
    sa.Column("uuid", Text, nullable=False),
    sa.Column("microseconds", sa.BigInteger, nullable=False),
    sa.Column("distinct_id", Text, nullable=False),
    sa.Index("merges_of_an_id", "anonymous_id", "day"),
)
"""The uuid is in no index: two events may have the same one, and one that R14 refuses may be of any length."""

links = sa.Table(
    "links",
    metadata,
    sa.Column("name", Text, primary_key=True),
    sa.Column("distinct_id", Text, primary_key=True, index=True),
    sqlite_with_rowid=False,
)
"""`facts.Links` of all days (R21: suppression). They are never deleted, even when a day is learned again."""


LOOKED_UP = (identified, emails, merges)
"""The tables that later days look up, so a day's content hash covers them."""

COLUMNS = {
    identified: pa.schema([("distinct_id", pa.string())]),
    emails: pa.schema([("distinct_id", pa.string()), ("email", pa.string()), ("microseconds", pa.int64())]),
    merges: pa.schema(
        [("anonymous_id", pa.string()), ("uuid", pa.string()), ("microseconds", pa.int64()), ("distinct_id", pa.string())]
    ),
    links: pa.schema([("name", pa.string()), ("distinct_id", pa.string())]),
}
"""The columns of each table of a day, except the day."""
