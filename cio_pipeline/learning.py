"""What a day's events say about people, shard by shard, into the identities (R1, R16, R18)."""

from __future__ import annotations

from collections import Counter

from cio_pipeline.events import code_hash, shard_of_events
from cio_pipeline.rules.facts import learn_with_links
from cio_pipeline.rules.stitching import MERGE_COLUMNS, merges
from cio_pipeline.state.identities import HISTORY_PARTITION, Identities
from cio_pipeline.state.learned import Learned
from cio_pipeline.tables.tables import Tables
from cio_pipeline.tables.versions import Version
from cio_pipeline.worker_pool import map_shards

LEARNED_FROM = ["uuid", "event", "distinct_id", "timestamp", "given_email", "anonymous_id"]


def learned_under(attributes_from: str) -> str:
    """The setting that what is learned depends on, by its value."""
    return f"CIO_ATTRIBUTES_FROM={attributes_from}"


def learn_day(day: str, setting: str, tables: Tables, identities: Identities, workers: int = 1) -> Counter[str]:
    """Keeps what the day's `posthog_events` say about people (R1), under a setting; gives how many people, identified
    ones, emails and merges. What was learned of the same events before is not learned again."""
    return _learn(day, setting, "posthog_events", tables, identities, workers)


def learn_history(setting: str, tables: Tables, identities: Identities, workers: int = 1) -> Counter[str]:
    """Keeps what the events of `identity_history` say about people (R18), under a setting; counts as `learn_day`."""
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
    facts, links = learn_with_links(events)
    return Learned.of(facts, merges(events)[MERGE_COLUMNS], links)
