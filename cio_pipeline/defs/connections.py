"""Texts about the two services and the settings, without keys: for the resources' pages, the runs' tags, and the receipts."""

from collections.abc import Callable

import dagster as dg

from cio_pipeline.settings.addresses import TRACKING_HOSTS
from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.load import settings_to_show
from cio_pipeline.settings.places import redacted
from cio_pipeline.settings.settings import Settings

POSTHOG_CLOUD = ("https://us.posthog.com", "https://eu.posthog.com")
WORKSPACES = "https://fly.customer.io"
"""The address of Customer.io's workspaces, in both regions (docs.customer.io, Account Regions)."""

REGIONS = {f"https://{host}": region.upper() for region, host in TRACKING_HOSTS.items()}
RULES = (
    *("identify_by_email", "anonymous_users", "stitch_anonymous_days", "event_allowlist", "exclude_attributes"),
    *("attributes_from", "allow_delivery_overrides", "allow_consent", "max_new_customers", "max_campaign_events"),
    *("missing_days", "late_days", "refused_share"),
)
"""The settings that determine what is sent, as fields of `Settings`."""


def source_text(settings: Settings) -> str:
    """Returns the source of the events: `us.posthog.com, project 1`."""
    if settings.event_source == "batch_export":
        return f"batch export in {redacted(settings.batch_export_url)}"
    return f"{settings.posthog_url.partition('://')[2]}, project {settings.posthog_project_id}"


def destination_text(settings: Settings) -> str:
    """Returns the destination of the events: `track.customer.io, US`."""
    region = REGIONS.get(settings.tracking_url)
    return settings.tracking_url.partition("://")[2] + (f", {region}" if region else "")


def source_url(settings: Settings) -> str | None:
    """Returns the address of the PostHog project, or None for a batch export."""
    if settings.event_source == "batch_export":
        return None
    is_cloud = settings.posthog_url in POSTHOG_CLOUD and settings.posthog_project_id
    return f"{settings.posthog_url}/project/{settings.posthog_project_id}" if is_cloud else settings.posthog_url


def destination_url(settings: Settings) -> str | None:
    """Returns the address of Customer.io's workspaces, or of the sandbox's people, or None if the Track API is another."""
    if settings.tracking_url in REGIONS:
        return WORKSPACES
    return settings.tracking_url if settings.sandbox else None


def as_markdown(settings: Settings) -> str:
    """Returns the source and the destination of the events, as Markdown with links."""
    ends = (
        (f"PostHog ({source_text(settings)})", source_url(settings)),
        (f"Customer.io ({destination_text(settings)})", destination_url(settings)),
    )
    return " to ".join(f"[{text}]({url})" if url else text for text, url in ends)


def ledger_text(settings: Settings) -> str:
    """Returns the ledger's address, without its password."""
    given = settings.ledger_url_given
    return "ledger.db in CIO_DATA_DIR" if given is None else redacted(given.get_secret_value())


def rules_text(settings: Settings) -> str:
    """Returns the names and values of the settings that determine what is sent."""
    fields = {name: (type(settings).model_fields[name].alias, getattr(settings, name)) for name in RULES}
    return ", ".join(f"{alias}={_text(value)}" for alias, value in fields.values())


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "Yes" if value else "No"
    if isinstance(value, tuple):
        return "|".join(map(str, value)) or "none"
    return "no limit" if value is None else str(value)


def loaded_settings() -> Settings | None:
    """Returns the settings as they are now, or None if one is wrong: a run reads them again, and fails with what is wrong."""
    try:
        return settings_to_show()
    except SettingsError:
        return None


SETTINGS_TO_SHOW = loaded_settings()
"""The settings on pages that are shown before any run, as of when the definitions were loaded. No run obeys them."""


def text_about(text_of: Callable[[Settings], str]) -> str:
    """Returns a text about the loaded settings."""
    return "a setting is wrong: a run says which" if SETTINGS_TO_SHOW is None else text_of(SETTINGS_TO_SHOW) or "not set"


def folder_uri(folder: str) -> dict[str, str]:
    """Returns metadata with the address of a folder in CIO_DATA_DIR."""
    return {} if SETTINGS_TO_SHOW is None else {"dagster/uri": f"{redacted(SETTINGS_TO_SHOW.data_dir).rstrip('/')}/{folder}"}


def page_address(address_of: Callable[[Settings], str | None]) -> dict[str, dg.MetadataValue]:
    """Returns metadata with the address of a service's page, if it is known."""
    url = address_of(SETTINGS_TO_SHOW) if SETTINGS_TO_SHOW is not None else None
    return {"address": dg.MetadataValue.url(url)} if url else {}
