"""Where alerts go: what is taken, and what is refused by its name without being shown."""

from __future__ import annotations

from datetime import time

import pytest

from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.load import load_alert_settings


def test_nobody_is_told_unless_somebody_is_named() -> None:
    settings = load_alert_settings()
    assert not settings.is_configured
    assert (settings.alert_format, settings.delivered_by, settings.dagster_url) == ("slack", time(9), "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CIO_ALERT_WEBHOOK_URL", "hooks.slack.com/services/secret"),
        ("CIO_ALERT_WEBHOOK_URL", "https://hooks.slack.com/services/ secret"),
        ("CIO_ALERT_WEBHOOK_URL", "http://hooks.slack.com/services/secret"),
        ("CIO_HEARTBEAT_URL", "http://hc-ping.com/secret"),
        ("CIO_HEARTBEAT_URL", "https://[hc-ping/secret"),
        ("CIO_ALERT_FORMAT", "teams"),
        ("CIO_ALERT_EMAIL", "Jane <secret@example.com>"),
        ("CIO_ALERT_EMAIL_FROM", "a-secret@example.com, b-secret@example.com"),
        ("CIO_SMTP_URL", "mail.example.com:587"),
        ("CIO_SMTP_URL", "smtp://user@mail.example.com"),
        ("CIO_SMTP_URL", "smtp://user:secret@mail.example.com/path"),
        ("CIO_DELIVERED_BY", "24:00"),
        ("CIO_DELIVERED_BY", "9"),
        ("CIO_NIGHTLY_AT", "3"),
        ("CIO_TIME_ZONE", "Berlin"),
        ("CIO_TIME_ZONE", "Europe"),
        ("CIO_HOURLY_CRON", "30 * * *"),
        ("CIO_HOURLY_CRON", "hourly"),
        ("CIO_DAGSTER_URL", "dagster"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{name} is wrong: .+\.$") as refused:
        load_alert_settings()
    assert "secret" not in str(refused.value)


def test_an_email_needs_its_server_and_a_server_its_emails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIO_ALERT_EMAIL", "a@example.com,b@example.com")
    with pytest.raises(SettingsError, match=r"^CIO_SMTP_URL is not set: CIO_ALERT_EMAIL needs it\.$"):
        load_alert_settings()
    monkeypatch.setenv("CIO_SMTP_URL", "smtp://user:p%40ss-secret@mail.example.com:587")
    assert load_alert_settings().alert_email == ("a@example.com", "b@example.com")
    assert "secret" not in repr(load_alert_settings())
    monkeypatch.delenv("CIO_ALERT_EMAIL")
    with pytest.raises(SettingsError, match=r"^CIO_ALERT_EMAIL is not set: CIO_SMTP_URL needs it\.$"):
        load_alert_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CIO_ALERT_WEBHOOK_URL", "https://hooks.slack.com/services/T0"),
        ("CIO_HEARTBEAT_URL", "http://10.0.0.1/ping"),
        ("CIO_SMTP_URL", "smtp://mail.example.com"),
    ],
)
def test_the_sandbox_calls_nobody_elsewhere(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("CIO_ALERT_EMAIL", "a@example.com")
    monkeypatch.setenv("CIO_SMTP_URL", "smtp://127.0.0.1:25")
    monkeypatch.setenv(name, value)
    load_alert_settings()
    monkeypatch.setenv("CIO_SANDBOX", "Yes")
    with pytest.raises(SettingsError, match=f"^{name} is refused: the sandbox reads and sends on this machine only"):
        load_alert_settings()
