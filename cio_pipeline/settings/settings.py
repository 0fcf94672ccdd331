"""Every setting, read from the environment, and refused in one sentence where it is wrong.

The environment wins over `.env`: `environment.load_environment`.
"""

from __future__ import annotations

import os
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from cio_pipeline.rules.options import Options
from cio_pipeline.settings import addresses, alerts, clock, values
from cio_pipeline.settings.envfile import SettingsError as SettingsError
from cio_pipeline.settings.environment import load_environment
from cio_pipeline.settings.places import (
    absolute,
    absolute_database,
    can_be_written,
    is_loopback,
    is_url,
    refuse_unknown_storage,
    refuse_unusable_folder,
)

DATABASES = "must be an SQLAlchemy URL, sqlite:////folder/ledger.db or postgresql://user:password@host/database"
HTTPS = "it must begin with https://, or CIO_ALLOW_PLAIN_HTTP=Yes say that nobody listens on the way"
SANDBOXED = "the sandbox reads and sends on this machine only (CIO_SANDBOX)"
CUSTOMERIO_REQUIRED = ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY")


def _database_url(text: Any) -> Any:
    """An SQLAlchemy URL that is read as it was meant: a password's special characters are percent-encoded."""
    if text is None:
        return None
    try:
        url = make_url(str(text))
    except (ArgumentError, ValueError):
        raise ValueError(DATABASES) from None
    kind, _, driver = url.drivername.partition("+")
    is_file = kind == "sqlite" and driver in ("", "pysqlite") and not url.host
    if not is_file and kind not in ("postgresql", "postgres"):
        raise ValueError(DATABASES)
    login, at, _ = str(text).partition("://")[2].rpartition("@")
    if at and unquote(login.partition(":")[2]) != (url.password or ""):
        raise ValueError("special characters of its user and password must be percent-encoded")
    return text


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(values.names)]
YesNo = Annotated[bool, BeforeValidator(values.yes)]
Key = Annotated[SecretStr, BeforeValidator(values.key)]


class DaysSettings(BaseSettings):
    """What Dagster's partitions and schedules are made of: needed as soon as the definitions are loaded, before any key.

    Each field's alias is its name in the environment.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    start_date: Annotated[date, BeforeValidator(values.day)] = Field(default=date(2025, 1, 1), alias="CIO_START_DATE")
    days_per_run: int = Field(default=31, ge=1, le=366, alias="CIO_DAYS_PER_RUN")
    late_days: int = Field(default=2, ge=0, le=30, alias="CIO_LATE_DAYS")
    nightly_at: Annotated[time, BeforeValidator(clock.hour)] = Field(default=time(3, 15), alias="CIO_NIGHTLY_AT")
    hourly_cron: Annotated[str, BeforeValidator(clock.cron)] = Field(default="30 * * * *", alias="CIO_HOURLY_CRON")
    delivered_by: Annotated[time, BeforeValidator(clock.hour)] = Field(default=time(9), alias="CIO_DELIVERED_BY")
    time_zone: Annotated[str, BeforeValidator(clock.zone)] = Field(default="UTC", alias="CIO_TIME_ZONE")
    json_logs: YesNo = Field(default=False, alias="CIO_JSON_LOGS")
    other_names: Names = Field(default=(), alias="CIO_OTHER_NAMES")

    @field_validator("*", mode="before")
    @classmethod
    def read(cls, text: Any, info: ValidationInfo) -> Any:
        """Each setting's text, before all else: trimmed, out of its quotes, and read by the field's type."""
        field = cls.model_fields[str(info.field_name)]
        if not isinstance(text, str):
            return text
        text = values.clean(text)
        return values.value_of(text, field) if text else field.default


class AlertSettings(DaysSettings):
    """Where alerts go: needed as soon as the definitions are loaded, too, for without one their sensor is off."""

    alert_webhook_url: Annotated[SecretStr | None, BeforeValidator(alerts.url)] = Field(
        default=None, alias="CIO_ALERT_WEBHOOK_URL"
    )
    alert_format: Literal["slack", "json"] = Field(default="slack", alias="CIO_ALERT_FORMAT")
    alert_email: Annotated[tuple[str, ...], NoDecode, BeforeValidator(alerts.emails)] = Field(
        default=(), alias="CIO_ALERT_EMAIL"
    )
    alert_email_from: Annotated[tuple[str, ...], NoDecode, BeforeValidator(alerts.emails)] = Field(
        default=(), max_length=1, alias="CIO_ALERT_EMAIL_FROM"
    )
    smtp_url: Annotated[SecretStr | None, BeforeValidator(alerts.smtp_url)] = Field(default=None, alias="CIO_SMTP_URL")
    heartbeat_url: Annotated[SecretStr | None, BeforeValidator(alerts.url)] = Field(default=None, alias="CIO_HEARTBEAT_URL")
    dagster_url: Annotated[str, BeforeValidator(alerts.url)] = Field(default="", alias="CIO_DAGSTER_URL")
    allow_plain_http: YesNo = Field(default=False, alias="CIO_ALLOW_PLAIN_HTTP")
    sandbox: YesNo = Field(default=False, alias="CIO_SANDBOX")

    @property
    def is_configured(self) -> bool:
        """Whether there is anywhere to send an alert, or a heartbeat, to."""
        return any((self.alert_webhook_url, self.alert_email, self.heartbeat_url))

    @property
    def alert_places(self) -> dict[str, str]:
        """The addresses that are called, by the names of their settings."""
        given = {
            "CIO_ALERT_WEBHOOK_URL": self.alert_webhook_url,
            "CIO_HEARTBEAT_URL": self.heartbeat_url,
            "CIO_SMTP_URL": self.smtp_url,
        }
        return {name: url.get_secret_value() for name, url in given.items() if url is not None}


class Settings(AlertSettings):
    """The connector's options and where things are, as README.md lists them.

    Secrets are `SecretStr`, so that neither `repr` nor a log shows them.
    """

    customerio_site_id: Key = Field(default=SecretStr(""), alias="CUSTOMERIO_SITE_ID")
    customerio_api_key: Key = Field(default=SecretStr(""), alias="CUSTOMERIO_API_KEY")
    tracking_url: Annotated[str, BeforeValidator(addresses.tracking_address)] = Field(
        default="https://track.customer.io", alias="CUSTOMERIO_TRACKING_ENDPOINT"
    )
    requests_per_second: float = Field(default=100, gt=0, le=1000, alias="CIO_REQUESTS_PER_SECOND")

    posthog_url: Annotated[str, BeforeValidator(addresses.posthog_address)] = Field(
        default="https://us.posthog.com", alias="POSTHOG_HOST"
    )
    posthog_project_id: Annotated[str, BeforeValidator(values.project_id)] = Field(default="", alias="POSTHOG_PROJECT_ID")
    posthog_api_key: Annotated[SecretStr, BeforeValidator(values.personal_key)] = Field(
        default=SecretStr(""), alias="POSTHOG_PERSONAL_API_KEY"
    )
    event_source: Literal["query", "events_api", "batch_export", "file_download"] = Field(
        default="query", alias="CIO_EVENT_SOURCE"
    )
    batch_export_url: Annotated[str, BeforeValidator(absolute)] = Field(default="", alias="CIO_BATCH_EXPORT_URL")

    identify_by_email: YesNo = Field(default=False, alias="CIO_IDENTIFY_BY_EMAIL")
    anonymous_users: Literal["all", "profiles", "identified", "emails"] = Field(default="all", alias="CIO_ANONYMOUS_USERS")
    event_allowlist: Names = Field(default=(), alias="CIO_EVENT_ALLOWLIST")
    exclude_attributes: Names = Field(default=(), alias="CIO_EXCLUDE_ATTRIBUTES")
    attributes_from: Literal["auto", "set", "person"] = Field(default="auto", alias="CIO_ATTRIBUTES_FROM")
    allow_delivery_overrides: YesNo = Field(default=False, alias="CIO_ALLOW_DELIVERY_OVERRIDES")
    allow_consent: Literal["No", "unsubscribe", "Yes"] = Field(default="unsubscribe", alias="CIO_ALLOW_CONSENT")

    stitch_anonymous_days: int = Field(default=0, ge=0, le=30, alias="CIO_STITCH_ANONYMOUS_DAYS")

    max_new_customers: int = Field(default=10_000, ge=0, alias="CIO_MAX_NEW_CUSTOMERS")
    max_campaign_events: int | None = Field(default=None, ge=0, alias="CIO_MAX_CAMPAIGN_EVENTS")
    missing_days: Literal["refuse", "allow"] = Field(default="refuse", alias="CIO_MISSING_DAYS")

    workers: int = Field(default=cores(), ge=1, le=256, alias="CIO_WORKERS")
    data_dir: Annotated[str, BeforeValidator(absolute)] = Field(default="data", validate_default=True, alias="CIO_DATA_DIR")
    ledger_url_given: Annotated[SecretStr | None, BeforeValidator(absolute_database), BeforeValidator(_database_url)] = Field(
        default=None, alias="CIO_LEDGER_URL"
    )
    suppressed_file_given: Annotated[SecretStr | None, BeforeValidator(absolute)] = Field(
        default=None, alias="CIO_SUPPRESSED_FILE"
    )
    ledger_lock_seconds: int = Field(default=60, ge=6, le=7200, alias="CIO_LEDGER_LOCK_SECONDS")
    ledger_days: int | None = Field(default=None, ge=7, alias="CIO_LEDGER_DAYS")
    refused_share: Annotated[float, BeforeValidator(values.share)] = Field(default=0.01, alias="CIO_REFUSED_SHARE")

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy's URL of the ledger's database; a file in the data dir unless `CIO_LEDGER_URL` says otherwise."""
        if self.ledger_url_given is not None:
            return self.ledger_url_given.get_secret_value()
        if is_url(self.data_dir):
            raise SettingsError("CIO_LEDGER_URL is not set: it is needed where CIO_DATA_DIR is not a local folder.")
        return f"sqlite:///{Path(self.data_dir) / 'ledger.db'}"

    @property
    def suppressed_file(self) -> str | None:
        """Where the people are named who asked to be forgotten: a path or URL, which may hold a password."""
        return None if self.suppressed_file_given is None else self.suppressed_file_given.get_secret_value()

    @property
    def places(self) -> dict[str, str]:
        """The settings that may be paths, by name, as this process reads them: for one with another working directory."""
        ledger = self.ledger_url_given and self.ledger_url_given.get_secret_value()
        places = {
            "CIO_DATA_DIR": self.data_dir,
            "CIO_BATCH_EXPORT_URL": self.batch_export_url,
            "CIO_LEDGER_URL": ledger,
            "CIO_SUPPRESSED_FILE": self.suppressed_file,
        }
        return {name: place for name, place in places.items() if place}

    @property
    def options(self) -> Options:
        """What the rules need to know."""
        return Options(
            identify_by_email=self.identify_by_email,
            anonymous_users=self.anonymous_users,
            event_allowlist=self.event_allowlist,
            exclude_attributes=self.exclude_attributes,
            allow_delivery_overrides=self.allow_delivery_overrides,
            allow_consent=self.allow_consent,
            stitch_anonymous_days=self.stitch_anonymous_days,
        )


NAMES = frozenset(str(field.alias) for field in Settings.model_fields.values())
"""The names of all settings."""

Model = TypeVar("Model", bound=BaseSettings)


def load_settings() -> Settings:
    """The settings of this environment. Raises `SettingsError` with one sentence naming what is missing or wrong."""
    load_environment(NAMES)
    if missing := [name for name in _required() if not _given(name)]:
        raise SettingsError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: see .env.example.")
    settings = _read(Settings)
    _refuse_alerts(settings)
    _refuse_plain_http(settings)
    _refuse_places(settings)
    return settings


def settings_to_show() -> Settings:
    """The settings as far as they are set, for pages: what is missing is empty, and no place is looked at. Raises
    `SettingsError` where one is wrong."""
    load_environment(NAMES)
    return _read(Settings)


def load_days_settings() -> DaysSettings:
    """The settings of the days alone, which need no key. Raises `SettingsError` as `load_settings` does."""
    load_environment(NAMES)
    return _read(DaysSettings)


def load_alert_settings() -> AlertSettings:
    """The settings of the alerts, which need no key either. Raises `SettingsError` as `load_settings` does."""
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
    """An email needs its server, and the other way round; as for the services, no clear text and no leaving the sandbox."""
    if bool(settings.alert_email) != bool(settings.smtp_url):
        given, missing = ("CIO_ALERT_EMAIL", "CIO_SMTP_URL")[:: 1 if settings.alert_email else -1]
        raise SettingsError(f"{missing} is not set: {given} needs it.")
    for name, place in settings.alert_places.items():
        if addresses.is_plain(place) and not settings.allow_plain_http:
            raise SettingsError(f"{name} is wrong: {HTTPS}.")
        if settings.sandbox and not is_loopback(place.replace("smtp", "http", 1)):
            raise SettingsError(f"{name} is refused: {SANDBOXED}.")


def _refuse_plain_http(settings: Settings) -> None:
    """Keys and people's data go in the clear only where nobody else listens, or where somebody has said that it may be."""
    places = {
        "CUSTOMERIO_TRACKING_ENDPOINT": settings.tracking_url,
        "POSTHOG_HOST": settings.posthog_url,
        "CIO_BATCH_EXPORT_URL": settings.batch_export_url,
        "CIO_SUPPRESSED_FILE": settings.suppressed_file or "",
    }
    if not settings.allow_plain_http and (plain := [name for name, place in places.items() if addresses.is_plain(place)]):
        raise SettingsError(f"{plain[0]} is wrong: {HTTPS}.")


def _refuse_places(settings: Settings) -> None:
    """The folders can be written to; in the sandbox nothing is elsewhere than on this machine."""
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
    """The settings without a default: a batch export's files are read without asking PostHog."""
    if _given("CIO_EVENT_SOURCE").lower() == "batch_export":
        return [*CUSTOMERIO_REQUIRED, "CIO_BATCH_EXPORT_URL"]
    return [*CUSTOMERIO_REQUIRED, "POSTHOG_PROJECT_ID", "POSTHOG_PERSONAL_API_KEY"]


def _given(name: str) -> str:
    return values.clean(os.environ.get(name, ""))


def _sentence(invalid: ValidationError, model: type[BaseSettings]) -> str:
    """What the first wrong setting must be, in our words, for pydantic's may quote it."""
    error = invalid.errors(include_input=False, include_url=False)[0]
    where = str(error["loc"][0])
    field = model.model_fields.get(where) or next(one for one in model.model_fields.values() if one.alias == where)
    is_ours = error["type"] == "value_error"
    return f"{field.alias} is wrong: {error['msg'].removeprefix('Value error, ') if is_ours else values.must_be(field)}."
