"""Settings: read by their documented names, and refused in one sentence that names them and shows no secret."""

from __future__ import annotations

import runpy

import pytest
from sqlalchemy.engine import make_url

from cio_pipeline.defs import partitions
from cio_pipeline.settings import SettingsError, load_settings

REQUIRED = {
    "CUSTOMERIO_SITE_ID": "site-secret",
    "CUSTOMERIO_API_KEY": "key-secret",
    "POSTHOG_PROJECT_ID": "1",
    "POSTHOG_PERSONAL_API_KEY": "phx-secret",
}


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_defaults_are_the_documented_ones(env: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    assert settings.tracking_url == "https://track.customer.io"
    assert settings.posthog_url == "https://us.posthog.com"
    assert settings.options.anonymous_users == "all"
    assert settings.options.identify_by_email is False
    assert settings.options.event_allowlist == ()
    assert settings.ledger_url.startswith("sqlite:////")


def test_r3_lists_are_trimmed_and_blanks_are_dropped(env: pytest.MonkeyPatch) -> None:
    env.setenv("CIO_EVENT_ALLOWLIST", " order placed ,,$pageview, ")
    assert load_settings().options.event_allowlist == ("order placed", "$pageview")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("track-eu.customer.io", "https://track-eu.customer.io"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://proxy.example.com/", "https://proxy.example.com"),
    ],
)
def test_the_endpoint_is_a_host_or_a_full_url(env: pytest.MonkeyPatch, given: str, url: str) -> None:
    env.setenv("CUSTOMERIO_TRACKING_ENDPOINT", given)
    assert load_settings().tracking_url == url


@pytest.mark.parametrize("name", sorted(REQUIRED))
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_or_empty_required_setting_is_named(env: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    env.delenv(name) if value is None else env.setenv(name, value)
    with pytest.raises(SettingsError, match=f"^{name} is not set: see .env.example.$"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CIO_IDENTIFY_BY_EMAIL", "maybe"),
        ("CIO_ANONYMOUS_USERS", "some"),
        ("CIO_ATTRIBUTES_FROM", "sets"),
        ("CUSTOMERIO_TRACKING_ENDPOINT", "track.example.com"),
        ("CUSTOMERIO_TRACKING_ENDPOINT", "http://localhost:99999"),
        ("POSTHOG_HOST", "https://[posthog"),
        ("CIO_START_DATE", "20250101"),
        ("POSTHOG_HOST", "us.posthog.com"),
        ("POSTHOG_PROJECT_ID", "1/../2"),
        ("CIO_START_DATE", "yesterday"),
        ("CIO_DAYS_PER_RUN", "0"),
        ("CIO_LEDGER_URL", "ledger.db"),
        ("CIO_LEDGER_URL", "mysql://user:secret@host/db"),
        ("CIO_LEDGER_URL", "postgresql://user:secret@host:port/db"),
    ],
)
def test_a_wrong_value_is_refused_by_the_settings_name(env: pytest.MonkeyPatch, name: str, value: str) -> None:
    env.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{name} is wrong: .+\.$"):
        load_settings()


def test_no_secret_is_shown(env: pytest.MonkeyPatch) -> None:
    assert "secret" not in repr(load_settings())
    env.setenv("CIO_LEDGER_URL", "postgresql://user:ledger-secret@host/db")
    env.setenv("CIO_DAYS_PER_RUN", "many")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("password", ["12/34", "p@ss", "a?b", "a#b/c", "12/3@4"])
def test_a_password_that_would_be_misread_is_refused_without_being_shown(env: pytest.MonkeyPatch, password: str) -> None:
    env.setenv("CIO_LEDGER_URL", f"postgresql://user:{password}@host/db")
    try:
        url = make_url(load_settings().ledger_url)
    except SettingsError as refused:
        assert str(refused) == "CIO_LEDGER_URL is wrong: special characters of its user and password must be percent-encoded."  # noqa: PT017
    else:
        assert (url.password, url.host, url.database) == (password, "host", "db")


def test_a_ledger_on_postgresql_and_the_list_of_the_suppressed_are_taken_as_given(env: pytest.MonkeyPatch) -> None:
    env.setenv("CIO_LEDGER_URL", "postgresql://user:p%40ss%2Fword@host:5432/db?sslmode=require")
    env.setenv("CIO_SUPPRESSED_FILE", "s3://key:list-secret@bucket/list")
    settings = load_settings()
    assert settings.ledger_url == "postgresql://user:p%40ss%2Fword@host:5432/db?sslmode=require"
    assert settings.suppressed_file == "s3://key:list-secret@bucket/list"
    assert "secret" not in repr(settings)


def test_a_bucket_for_the_tables_needs_a_ledger_elsewhere(env: pytest.MonkeyPatch) -> None:
    env.setenv("CIO_DATA_DIR", "s3://bucket/tables")
    with pytest.raises(SettingsError, match="CIO_LEDGER_URL"):
        load_settings()


def test_a_batch_export_needs_its_url_and_nothing_of_posthog(env: pytest.MonkeyPatch) -> None:
    env.delenv("POSTHOG_PROJECT_ID")
    env.delenv("POSTHOG_PERSONAL_API_KEY")
    env.setenv("CIO_EVENT_SOURCE", "batch_export")
    with pytest.raises(SettingsError, match=r"^CIO_BATCH_EXPORT_URL is not set: see \.env\.example\.$"):
        load_settings()
    env.setenv("CIO_BATCH_EXPORT_URL", "s3://bucket/export")
    assert load_settings().batch_export_url == "s3://bucket/export"


@pytest.mark.parametrize(
    ("name", "value"), [("CIO_START_DATE", "yesterday"), ("CIO_DAYS_PER_RUN", "abc"), ("CIO_LATE_DAYS", "31")]
)
def test_a_wrong_setting_of_the_days_is_named_when_dagster_loads_them(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{name} is wrong: .+\.$"):
        runpy.run_path(partitions.__file__)


def test_the_days_need_no_secret_and_have_the_settings_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    found = runpy.run_path(partitions.__file__)
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert found["days"].start.date() == settings.start_date
    assert found["a_few_days_a_run"].max_partitions_per_run == settings.days_per_run
    assert settings.late_days == found["LATE_DAYS"]
