"""The two services as the settings name them: a source of PostHog's events, and Customer.io's Track API."""

import logging

from cio_pipeline.customerio.client import TrackClient
from cio_pipeline.posthog.events_api import EventsApiSource
from cio_pipeline.posthog.exports.batch_export import BatchExportSource
from cio_pipeline.posthog.exports.file_download import FileDownloadSource
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.posthog.source import EventSource
from cio_pipeline.settings.settings import Settings

logger = logging.getLogger(__name__)


def new_event_source(settings: Settings) -> EventSource:
    """Returns the source that CIO_EVENT_SOURCE names.

    Instead of `query` it is `events_api` if PostHog itself says that it has no query API (1.30.0 to 1.43); a 404 from a proxy,
    or for a wrong project, does not say that. Raises `Unavailable` or `NotExtracted`.
    """
    selection = (settings.event_allowlist, settings.attributes_from)
    posthog = (settings.posthog_url, settings.posthog_project_id, settings.posthog_api_key.get_secret_value())
    if settings.event_source == "batch_export":
        return BatchExportSource(settings.batch_export_url, settings.late_days, *selection)
    if settings.event_source == "file_download":
        return FileDownloadSource(
            *posthog,
            late_days=settings.late_days,
            allowlist=settings.event_allowlist,
            attributes_from=settings.attributes_from,
            data_dir=settings.data_dir,
        )
    listed = EventsApiSource(*posthog, *selection)
    if settings.event_source == "events_api":
        return listed
    query = QuerySource(*posthog, *selection)
    if query.exists():
        return query
    listed.check()
    logger.warning("This PostHog has no query API: its list of events is read, which no count can be checked against.")
    return listed


def track_client(settings: Settings) -> TrackClient:
    """Returns a client of the Track API with the credentials of the settings."""
    return TrackClient(
        settings.tracking_url,
        settings.customerio_site_id.get_secret_value(),
        settings.customerio_api_key.get_secret_value(),
        settings.requests_per_second,
    )
