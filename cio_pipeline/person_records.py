"""Collects what the tables, the identities and the ledger hold about one person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date, timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.attribute_state import State
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.packed_ids import are_in, pack_ids
from cio_pipeline.pipeline.events import KEPT_EVENTS, events_of
from cio_pipeline.rules.classify import classify
from cio_pipeline.rules.customers import CUSTOMERS
from cio_pipeline.rules.distinct_ids import is_valid_distinct_id
from cio_pipeline.rules.operations import EVENTS, REJECTS
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.values import is_email
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.tables.tables import Tables

EVENT_COLUMNS = ["timestamp", "uuid", "event", "distinct_id", "outcome", "day"]
COLUMNS = {
    "events": EVENTS.empty_table().select(["uuid", "ulid", "key", "distinct_id", "name", "timestamp"]),
    "customers": CUSTOMERS.empty_table().select(["key", "part", "operation", "state"]),
    "rejects": REJECTS.empty_table(),
}
"""The columns that are read of each table, as an empty table."""


@dataclass(frozen=True)
class PersonRecords:
    """What the tables, the ledger and the suppression list have about a person, over some days.

    Each frame has the column `day`: the day of the table that a row is from.
    """

    events: pd.DataFrame
    """Rows of `posthog_events` with their outcome (`classify`): the columns `EVENT_COLUMNS`."""
    sent: pd.DataFrame
    """Rows of `events`."""
    rejects: pd.DataFrame
    """Rows of `rejects`."""
    upserts: pd.DataFrame
    """Rows of `customers`."""
    derived: Set[str]
    """The days that have these three tables."""
    acknowledged: Set[str]
    """The ids in Customer.io of the acknowledged events."""
    refused: Mapping[tuple[str, str], str]
    """Customer.io's reasons, by day and item id."""
    states: Mapping[str, State]
    """The acknowledged attributes, by customer's key."""
    is_suppressed: bool
    """Whether the suppression list names the person."""


def person_names(name: str, identities: Identities) -> set[str]:
    """R21: all distinct_ids and emails (in lower case) of the person that a distinct_id or email belongs to."""
    linked = identities.linked({name.lower() if "@" in name else name})
    return linked if len(linked) > 1 else {name, *linked}


def look_up(
    names: Set[str],
    days: Sequence[str],
    tables: Tables,
    identities: Identities,
    ledger: Ledger,
    options: Options,
    suppressed: Suppressed,
) -> PersonRecords:
    """The records of the person with these names, from the tables of these days. A day that was never extracted or derived has
    none."""
    last = date.fromisoformat(days[-1])
    stitched_days = options.stitch_anonymous_days if options.stitches else 0
    sent_days = [*days, *(str(last + timedelta(days=ahead)) for ahead in range(1, stitched_days + 1))]
    sent = {day: _rows_where(tables, "events", day, "distinct_id", names) for day in sent_days}
    keys = {f"id:{name}" for name in names} | {f"email:{name.lower()}" for name in names if is_email(name)}
    keys |= {key for rows in sent.values() for key in rows["key"]}
    refusals = [(day, one) for day in sent_days for one in ledger.refused(day).values() if one.key in keys]
    return PersonRecords(
        events=pd.concat(_classified(day, names, tables, identities, options) for day in days),
        sent=pd.concat(sent.values()),
        rejects=pd.concat(_rows_where(tables, "rejects", day, "distinct_id", names) for day in days),
        upserts=pd.concat(_rows_where(tables, "customers", day, "key", keys) for day in days),
        derived={day for day in days if tables.find_version("events", day) is not None},
        acknowledged={ulid for day, rows in sent.items() for ulid in _acknowledged(day, rows, ledger)},
        refused={(day, one.item_id): one.reason for day, one in refusals},
        states=ledger.states(keys),
        is_suppressed=any(map(suppressed.has, names)),
    )


def _classified(day: str, names: Set[str], tables: Tables, identities: Identities, options: Options) -> pd.DataFrame:
    """The person's rows of `posthog_events`, with their outcome and the day."""
    events = [KEPT_EVENTS.empty_table()]
    if (version := tables.find_version("posthog_events", day)) is not None:
        events += events_of(tables, day, version, list(names))
    earlier = identities.known_before(day, [name for name in names if is_valid_distinct_id(name)])
    return pd.concat([classify(rows.to_pandas(), earlier, options) for rows in events]).assign(day=day)[EVENT_COLUMNS]


def _rows_where(tables: Tables, table: str, day: str, column: str, values: Set[str]) -> pd.DataFrame:
    """The rows of a day's table whose column has one of these values, with the day; none where the day was never derived."""
    empty = COLUMNS[table]
    wanted = pa.array(sorted(values), empty.schema.field(column).type)
    written = tables.find_version(table, day) is not None
    shards = tables.read_arrow(table, day, empty.column_names) if written else iter(())
    rows = [shard.filter(pc.is_in(shard[column], wanted)).cast(empty.schema) for shard in shards]
    return pa.concat_tables([empty, *rows]).to_pandas().assign(day=day)


def _acknowledged(day: str, sent: pd.DataFrame, ledger: Ledger) -> list[str]:
    """The ids of those of a day's rows of `events` that the ledger records as delivered."""
    ulids: list[str] = sent["ulid"].tolist()
    if not ulids:
        return []
    delivered = are_in(ledger.delivered(day), pack_ids(ulids))
    return [ulid for ulid, is_delivered in zip(ulids, delivered, strict=True) if is_delivered]
