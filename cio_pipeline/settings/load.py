"""Reads and checks the settings. What is missing or wrong is refused with one sentence.

The environment wins over `.env` (`environment.load_environment`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings
from sqlalchemy.engine import make_url

from cio_pipeline.settings import addresses, values
from cio_pipeline.settings.environment import load_environment
from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.places import can_be_written, is_loopback, is_url, refuse_unknown_storage, refuse_unusable_folder
from cio_pipeline.settings.settings import NAMES, AlertSettings, DaysSettings, Settings

HTTPS = "it must begin with https://, unless CIO_ALLOW_PLAIN_HTTP=Yes says that nobody can listen on the way"
SANDBOXED = "the sandbox reads and sends on this machine only (CIO_SANDBOX)"
CUSTOMERIO_REQUIRED = ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY")

Model = TypeVar("Model", bound=BaseSettings)


def load_settings() -> Settings:
    """Returns all settings. Raises `SettingsError`, which names what is missing or wrong."""
    load_environment(NAMES)
    if missing := [name for name in _required() if not _given(name)]:
        raise SettingsError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: see .env.example.")
    settings = _read(Settings)
    _refuse_alerts(settings)
    _refuse_plain_http(settings)
    _refuse_short_ledger(settings)
    _refuse_places(settings)
    return settings


def settings_to_show() -> Settings:
    """Returns the settings for Dagster's pages: missing ones are empty, and no folder or address is checked. Raises
    `SettingsError` if one is wrong."""
    load_environment(NAMES)
    return _read(Settings)


def load_days_settings() -> DaysSettings:
    """Returns only the settings of the days, which need no key. Raises `SettingsError` like `load_settings`."""
    load_environment(NAMES)
    return _read(DaysSettings)


def load_alert_settings() -> AlertSettings:
    """Returns only the settings of the alerts, which need no key either. Raises `SettingsError` like `load_settings`."""
    load_environment(NAMES)
    settings = _read(AlertSettings)
    _refuse_alerts(settings)
    return settings


def _read(model: type[Model]) -> Model:
    try:
        return model()
    except ValidationError as invalid:
        sentence = _sentence(invalid, model)
    raise SettingsError(sentence)


def _refuse_alerts(settings: AlertSettings) -> None:
    """Refuses an email address without a server, a server without an address and, as for the services, plain HTTP and, in the
    sandbox, other machines."""
    if bool(settings.alert_email) != bool(settings.smtp_url):
        given, missing = ("CIO_ALERT_EMAIL", "CIO_SMTP_URL")[:: 1 if settings.alert_email else -1]
        raise SettingsError(f"{missing} is not set: {given} needs it.")
    for name, place in settings.alert_places.items():
        if addresses.is_plain(place) and not settings.allow_plain_http:
            raise SettingsError(f"{name} is wrong: {HTTPS}.")
        if settings.sandbox and not is_loopback(place.replace("smtp", "http", 1)):
            raise SettingsError(f"{name} is refused: {SANDBOXED}.")


def _refuse_plain_http(settings: Settings) -> None:
    """Refuses plain HTTP for keys and personal data, unless nobody else can listen, or CIO_ALLOW_PLAIN_HTTP allows it."""
    places = {
        "CUSTOMERIO_TRACKING_ENDPOINT": settings.tracking_url,
        "POSTHOG_HOST": settings.posthog_url,
        "CIO_BATCH_EXPORT_URL": settings.batch_export_url,
        "CIO_SUPPRESSED_FILE": settings.suppressed_file or "",
    }
    if not settings.allow_plain_http and (plain := [name for name, place in places.items() if addresses.is_plain(place)]):
        raise SettingsError(f"{plain[0]} is wrong: {HTTPS}.")


def _refuse_short_ledger(settings: Settings) -> None:
    """Refuses a ledger that does not remember the first day of each nightly run, CIO_LATE_DAYS days before yesterday, until the
    run has delivered it, which may be after midnight."""
    if settings.ledger_days is not None and settings.ledger_days < settings.late_days + 2:
        raise SettingsError(
            f"CIO_LEDGER_DAYS is wrong: must be at least {settings.late_days + 2}, two more than CIO_LATE_DAYS"
            f" ({settings.late_days}), or nightly runs could not send anything."
        )


def _refuse_places(settings: Settings) -> None:
    """Refuses folders that cannot be written to and, in the sandbox, whatever is not on this machine."""
    if not is_url(settings.data_dir):
        refuse_unusable_folder("CIO_DATA_DIR", Path(settings.data_dir))
    elif not can_be_written(settings.data_dir):
        raise SettingsError("CIO_DATA_DIR is wrong: must be a folder, or a bucket's address such as s3://bucket/folder.")
    refuse_unknown_storage("CIO_DATA_DIR", settings.data_dir)
    refuse_unknown_storage("CIO_BATCH_EXPORT_URL", settings.batch_export_url)
    refuse_unknown_storage("CIO_SUPPRESSED_FILE", settings.suppressed_file or "")
    ledger = make_url(settings.ledger_url)
    if ledger.drivername.startswith("sqlite") and ledger.database:
        refuse_unusable_folder("CIO_LEDGER_URL", Path(ledger.database).parent)
    if not settings.sandbox:
        return
    places = {
        "CUSTOMERIO_TRACKING_ENDPOINT": settings.tracking_url,
        "POSTHOG_HOST": settings.posthog_url,
        "CIO_BATCH_EXPORT_URL": settings.batch_export_url,
        "CIO_DATA_DIR": settings.data_dir,
        "CIO_LEDGER_URL": settings.ledger_url,
        "CIO_SUPPRESSED_FILE": settings.suppressed_file or "",
    }
    if away := [name for name, place in places.items() if not is_loopback(place)]:
        raise SettingsError(f"{away[0]} is refused: {SANDBOXED}.")


def _required() -> list[str]:
    """Returns the settings without a default. A batch export's files are read without asking PostHog, so without its key."""
    if _given("CIO_EVENT_SOURCE").lower() == "batch_export":
        return [*CUSTOMERIO_REQUIRED, "CIO_BATCH_EXPORT_URL"]
    return [*CUSTOMERIO_REQUIRED, "POSTHOG_PROJECT_ID", "POSTHOG_PERSONAL_API_KEY"]


def _given(name: str) -> str:
    return values.clean(os.environ.get(name, ""))


def _sentence(invalid: ValidationError, model: type[BaseSettings]) -> str:
    """Returns what the first wrong setting must be, in our own words, as pydantic's may quote the value."""
    error = invalid.errors(include_input=False, include_url=False)[0]
    where = str(error["loc"][0])
    field = model.model_fields.get(where) or next(one for one in model.model_fields.values() if one.alias == where)
    is_ours = error["type"] == "value_error"
    return f"{field.alias} is wrong: {error['msg'].removeprefix('Value error, ') if is_ours else values.must_be(field)}."
