"""What the pipeline is connected to, without its keys: for the resources' pages, the runs' tags and the receipts."""

from collections.abc import Callable

import dagster as dg

from cio_pipeline.settings.addresses import TRACKING_HOSTS
from cio_pipeline.settings.load import settings_to_show
from cio_pipeline.settings.places import shown
from cio_pipeline.settings.settings import Settings, SettingsError

POSTHOG_CLOUD = ("https://us.posthog.com", "https://eu.posthog.com")
WORKSPACES = "https://fly.customer.io"
"""The address of the workspaces of both regions (docs.customer.io, Account Regions)."""

REGIONS = dict(zip((f"https://{host}" for host in TRACKING_HOSTS), ("US", "EU"), strict=True))
RULES = (
    *("identify_by_email", "anonymous_users", "stitch_anonymous_days", "event_allowlist", "exclude_attributes"),
    *("attributes_from", "allow_delivery_overrides", "allow_consent", "max_new_customers", "max_campaign_events"),
    *("missing_days", "late_days", "refused_share"),
)
"""The settings that say what is sent, by their fields in `Settings`."""


def source(settings: Settings) -> str:
    """Where the events are read: `us.posthog.com, project 1`."""
    if settings.event_source == "batch_export":
        return f"batch export in {shown(settings.batch_export_url)}"
    return f"{settings.posthog_url.partition('://')[2]}, project {settings.posthog_project_id}"


def sink(settings: Settings) -> str:
    """Where they are sent: `track.customer.io, US`."""
    region = REGIONS.get(settings.tracking_url)
    return settings.tracking_url.partition("://")[2] + (f", {region}" if region else "")


def source_url(settings: Settings) -> str | None:
    """The page of the PostHog project."""
    if settings.event_source == "batch_export":
        return None
    is_cloud = settings.posthog_url in POSTHOG_CLOUD and settings.posthog_project_id
    return f"{settings.posthog_url}/project/{settings.posthog_project_id}" if is_cloud else settings.posthog_url


def sink_url(settings: Settings) -> str | None:
    """The page of Customer.io's workspaces; in the sandbox that of its people. Of any other address it is not known."""
    if settings.tracking_url in REGIONS:
        return WORKSPACES
    return settings.tracking_url if settings.sandbox else None


def as_markdown(settings: Settings) -> str:
    """From where to where, with links."""
    ends = ((f"PostHog ({source(settings)})", source_url(settings)), (f"Customer.io ({sink(settings)})", sink_url(settings)))
    return " to ".join(f"[{text}]({url})" if url else text for text, url in ends)


def ledger(settings: Settings) -> str:
    """Where the ledger is."""
    given = settings.ledger_url_given
    return "ledger.db in CIO_DATA_DIR" if given is None else shown(given.get_secret_value())


def rules(settings: Settings) -> str:
    """The settings that say what is sent, by their names."""
    fields = {name: (type(settings).model_fields[name].alias, getattr(settings, name)) for name in RULES}
    return ", ".join(f"{alias}={_text(value)}" for alias, value in fields.values())


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return "|".join(map(str, value)) or "none" if isinstance(value, tuple) else "no bound" if value is None else str(value)


def loaded() -> Settings | None:
    """The settings when the definitions are loaded, for pages that are shown before any run; None where one is wrong.
    A run reads them again, and says what is wrong."""
    try:
        return settings_to_show()
    except SettingsError:
        return None


LOADED = loaded()


def text(of: Callable[[Settings], str]) -> str:
    """What is shown of the settings that were loaded."""
    return "a setting is wrong: a run says which" if LOADED is None else of(LOADED) or "not set"


def uri(folder: str) -> dict[str, str]:
    """Metadata: where the tables of a folder in CIO_DATA_DIR are."""
    return {} if LOADED is None else {"dagster/uri": f"{shown(LOADED.data_dir).rstrip('/')}/{folder}"}


def link(of: Callable[[Settings], str | None]) -> dict[str, dg.MetadataValue]:
    """Metadata: a page of a service, where its address is known."""
    url = of(LOADED) if LOADED is not None else None
    return {"address": dg.MetadataValue.url(url)} if url else {}
