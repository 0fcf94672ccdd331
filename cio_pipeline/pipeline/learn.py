"""From a day's events to the identities: what they say about people, shard by shard (R1, R16, R18, R21)."""

from __future__ import annotations

from collections import Counter

from cio_pipeline.pipeline.events import code_hash, shard_of_events
from cio_pipeline.rules.facts import learn
from cio_pipeline.rules.stitching import MERGE_COLUMNS, merges
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.identity_tables import HISTORY_PARTITION
from cio_pipeline.state.learned import Learned
from cio_pipeline.tables.tables import Tables
from cio_pipeline.tables.versions import Version
from cio_pipeline.worker_pool import map_shards

LEARNED_FROM = ["uuid", "event", "distinct_id", "timestamp", "given_email", "anonymous_id"]


def learned_under(attributes_from: str) -> str:
    """Returns the setting that affects what is learned, with its value."""
    return f"CIO_ATTRIBUTES_FROM={attributes_from}"


def learn_day(day: str, setting: str, tables: Tables, identities: Identities, workers: int = 1) -> Counter[str]:
    """Stores what the day's `posthog_events` say about people (R1) in the identities. Returns the number
    of people, identified people, emails and anonymous ids named. If the same events were learned before, they are not learned
    again.

    setting: as `learned_under` returns it.
    """
    return _learn(day, setting, "posthog_events", tables, identities, workers)


def learn_history(setting: str, tables: Tables, identities: Identities, workers: int = 1) -> Counter[str]:
    """Stores what the events of `identity_history` say about people (R18) in the identities, like `learn_day`."""
    return _learn(HISTORY_PARTITION, setting, "identity_history", tables, identities, workers)


def _learn(day: str, setting: str, table: str, tables: Tables, identities: Identities, workers: int) -> Counter[str]:
    version = tables.version(table, day)
    fingerprint = f"{version.content_hash} {code_hash()}"
    if (known := identities.counts_if_learned_from(day, setting, fingerprint)) is not None:
        return known
    shards = ((tables, table, day, version, shard) for shard in range(version.shards))
    learned = map_shards(_learn_shard, shards, version.shards, workers, f"{day}: learned")
    return identities.replace(day, setting, version.rows, learned, fingerprint)


def _learn_shard(tables: Tables, table: str, day: str, version: Version, shard: int) -> Learned:
    events = shard_of_events(tables, table, day, version, shard, LEARNED_FROM).to_pandas()
    facts, links = learn(events)
    return Learned.of(facts, merges(events)[MERGE_COLUMNS], links)
