"""Every setting: its name in the environment (the field's alias), its type and its default. `load.py` reads them."""

from __future__ import annotations

import os
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cio_pipeline.rules.consent import AllowConsent
from cio_pipeline.rules.options import AnonymousUsers, AttributesFrom, Options
from cio_pipeline.settings import addresses, alerts, clock, values
from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.places import absolute, absolute_database, is_url


def cores() -> int:
    """Returns the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(values.parse_names)]
YesNo = Annotated[bool, BeforeValidator(values.parse_yes_no)]
Key = Annotated[SecretStr, BeforeValidator(values.parse_service_key)]


class DaysSettings(BaseSettings):
    """The settings of Dagster's partitions and schedules, which are needed as soon as the definitions are loaded, before any
    key.

    Each field's alias is its name in the environment.
    """

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True)

    start_date: Annotated[date, BeforeValidator(values.parse_day)] = Field(default=date(2025, 1, 1), alias="CIO_START_DATE")
    days_per_run: int = Field(default=31, ge=1, le=366, alias="CIO_DAYS_PER_RUN")
    late_days: int = Field(default=2, ge=0, le=30, alias="CIO_LATE_DAYS")
    nightly_at: Annotated[time, BeforeValidator(clock.parse_time_of_day)] = Field(default=time(3, 15), alias="CIO_NIGHTLY_AT")
    hourly_cron: Annotated[str, BeforeValidator(clock.parse_cron)] = Field(default="30 * * * *", alias="CIO_HOURLY_CRON")
    delivered_by: Annotated[time, BeforeValidator(clock.parse_time_of_day)] = Field(default=time(9), alias="CIO_DELIVERED_BY")
    time_zone: Annotated[str, BeforeValidator(clock.parse_time_zone)] = Field(default="UTC", alias="CIO_TIME_ZONE")
    json_logs: YesNo = Field(default=False, alias="CIO_JSON_LOGS")
    other_names: Names = Field(default=(), alias="CIO_OTHER_NAMES")

    @field_validator("*", mode="before")
    @classmethod
    def read(cls, text: Any, info: ValidationInfo) -> Any:
        """Returns the value of each setting's text: trimmed, without its quotes, and read by the field's type."""
        field = cls.model_fields[str(info.field_name)]
        if not isinstance(text, str):
            return text
        text = values.clean(text)
        return values.value_of(text, field) if text else field.default


class AlertSettings(DaysSettings):
    """The targets of alerts, which are needed as soon as the definitions are loaded, too: without one, their sensor is off."""

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
        """Whether an alert or a heartbeat can be sent anywhere."""
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
    """The connector's options and where things are, as docs/settings.md lists them.

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
    posthog_project_id: Annotated[str, BeforeValidator(values.parse_project_id)] = Field(default="", alias="POSTHOG_PROJECT_ID")
    posthog_api_key: Annotated[SecretStr, BeforeValidator(values.parse_personal_key)] = Field(
        default=SecretStr(""), alias="POSTHOG_PERSONAL_API_KEY"
    )
    event_source: Literal["query", "events_api", "batch_export", "file_download"] = Field(
        default="query", alias="CIO_EVENT_SOURCE"
    )
    batch_export_url: Annotated[str, BeforeValidator(absolute)] = Field(default="", alias="CIO_BATCH_EXPORT_URL")

    identify_by_email: YesNo = Field(default=False, alias="CIO_IDENTIFY_BY_EMAIL")
    anonymous_users: AnonymousUsers = Field(default="all", alias="CIO_ANONYMOUS_USERS")
    event_allowlist: Names = Field(default=(), alias="CIO_EVENT_ALLOWLIST")
    exclude_attributes: Names = Field(default=(), alias="CIO_EXCLUDE_ATTRIBUTES")
    attributes_from: AttributesFrom = Field(default="auto", alias="CIO_ATTRIBUTES_FROM")
    allow_delivery_overrides: YesNo = Field(default=False, alias="CIO_ALLOW_DELIVERY_OVERRIDES")
    allow_consent: AllowConsent = Field(default="unsubscribe", alias="CIO_ALLOW_CONSENT")

    stitch_anonymous_days: int = Field(default=0, ge=0, le=30, alias="CIO_STITCH_ANONYMOUS_DAYS")

    max_new_customers: int = Field(default=10_000, ge=0, alias="CIO_MAX_NEW_CUSTOMERS")
    max_campaign_events: int | None = Field(default=None, ge=0, alias="CIO_MAX_CAMPAIGN_EVENTS")
    missing_days: Literal["refuse", "allow"] = Field(default="refuse", alias="CIO_MISSING_DAYS")

    workers: int = Field(default=cores(), ge=1, le=256, alias="CIO_WORKERS")
    data_dir: Annotated[str, BeforeValidator(absolute)] = Field(default="data", validate_default=True, alias="CIO_DATA_DIR")
    ledger_url_given: Annotated[
        SecretStr | None, BeforeValidator(absolute_database), BeforeValidator(addresses.database_url)
    ] = Field(default=None, alias="CIO_LEDGER_URL")
    suppressed_file_given: Annotated[SecretStr | None, BeforeValidator(absolute)] = Field(
        default=None, alias="CIO_SUPPRESSED_FILE"
    )
    ledger_lock_seconds: int = Field(default=60, ge=6, le=7200, alias="CIO_LEDGER_LOCK_SECONDS")
    ledger_days: int | None = Field(default=None, ge=7, alias="CIO_LEDGER_DAYS")
    refused_share: Annotated[float, BeforeValidator(values.parse_share)] = Field(default=0.01, alias="CIO_REFUSED_SHARE")

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy's URL of the ledger's database; by default a file in CIO_DATA_DIR."""
        if self.ledger_url_given is not None:
            return self.ledger_url_given.get_secret_value()
        if is_url(self.data_dir):
            raise SettingsError("CIO_LEDGER_URL is not set: it is needed if CIO_DATA_DIR is not a local folder.")
        return f"sqlite:///{Path(self.data_dir) / 'ledger.db'}"

    @property
    def suppressed_file(self) -> str | None:
        """The list of people who asked to be forgotten: a path or URL, which may contain a password."""
        return None if self.suppressed_file_given is None else self.suppressed_file_given.get_secret_value()

    @property
    def places(self) -> dict[str, str]:
        """The settings that may be paths, by name, as this process reads them: for a process with another working directory."""
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
        """The settings of the rules."""
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
