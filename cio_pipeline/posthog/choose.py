"""Which endpoint a PostHog has."""

from __future__ import annotations

from cio_pipeline.posthog.events_api import EventsApiSource
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.posthog.source import Say, quietly


def source_for(
    url: str, project_id: str, api_key: str, allowlist: tuple[str, ...], with_person: bool, say: Say = quietly
) -> QuerySource | EventsApiSource:
    """The `query` source, or `events_api` where there is no query endpoint: PostHog 1.30.0 to 1.43.

    A wrong project id looks the same here; the source's `check` then says so. Raises `http.Unavailable`.
    """
    query = QuerySource(url, project_id, api_key, allowlist, with_person)
    return query if query.exists(say) else EventsApiSource(url, project_id, api_key, allowlist, with_person)
