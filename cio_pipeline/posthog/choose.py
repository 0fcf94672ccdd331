"""Which endpoint a PostHog has."""

from __future__ import annotations

from cio_pipeline.posthog.events_list import EventsApiSource
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.posthog.source import AttributesFrom, Say, quietly


def source_for(
    url: str,
    project_id: str,
    api_key: str,
    allowlist: tuple[str, ...],
    attributes_from: AttributesFrom,
    say: Say = quietly,
) -> QuerySource | EventsApiSource:
    """The `query` source, or `events_api` where PostHog itself says that it has no query endpoint: 1.30.0 to 1.43.

    A 404 of a proxy, or of a wrong project, is none of these; the source's `check` then says so. Raises `http.Unavailable`
    or `NotExtracted`.
    """
    query = QuerySource(url, project_id, api_key, allowlist, attributes_from)
    if query.exists(say):
        return query
    listed = EventsApiSource(url, project_id, api_key, allowlist, attributes_from)
    listed.check(say)
    say("This PostHog has no query API: its list of events is read, which no count can be checked against.")
    return listed
