"""A day's events as the rules classify them, shard by shard, with what earlier days said about their people."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.pipeline.events import KEPT_EVENTS, shard_of_events
from cio_pipeline.rules.classify import classify
from cio_pipeline.rules.distinct_ids import is_valid_distinct_id
from cio_pipeline.rules.options import Options
from cio_pipeline.state.identities import Identities
from cio_pipeline.tables.tables import Tables
from cio_pipeline.tables.versions import Version

COLUMNS = [name for name in KEPT_EVENTS.names if name != "created_at"]


@dataclass(frozen=True)
class DerivationInput:
    """A day's version of `posthog_events`, to be classified with these options; if `until` is given, only what is before it."""

    day: str
    tables: Tables = field(repr=False)
    version: Version
    options: Options = field(repr=False)
    until: datetime | None = None


def classified_shard(day_input: DerivationInput, shard: int, earlier: pd.DataFrame) -> pd.DataFrame:
    """Returns a shard's events as `classify` does; `earlier` comes from `earlier_facts_of_shard`. Raises `StorageError`."""
    events = shard_of_events(day_input.tables, "posthog_events", day_input.day, day_input.version, shard, COLUMNS)
    if day_input.until is not None:
        events = events.filter(pc.less(events["timestamp"], pa.scalar(day_input.until, events["timestamp"].type)))
    return classify(events.to_pandas(), earlier, day_input.options)


def earlier_facts_of_shard(day_input: DerivationInput, shard: int, identities: Identities) -> pd.DataFrame:
    """Returns what earlier days said about the people of a shard's events, as `facts.learn` does."""
    events = day_input.tables.shard("posthog_events", day_input.day, day_input.version, shard, ["distinct_id"])
    return earlier_facts(day_input.day, pc.unique(events["distinct_id"]).to_pylist(), identities)


def earlier_facts(date: str, distinct_ids: list[str], identities: Identities) -> pd.DataFrame:
    """Returns what the days before this one said about these distinct_ids, as `facts.learn` does.

    Those that R14 refuses are not looked up: nothing is learned about them, and they may be too long for the database's index.
    """
    return identities.known_before(date, [who for who in distinct_ids if is_valid_distinct_id(who)])
