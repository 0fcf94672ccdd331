"""Settings: read by their documented names, and refused in one sentence that names them and shows no secret."""

from __future__ import annotations

import os
import re
import runpy
from datetime import date

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from sqlalchemy.engine import make_url

from cio_pipeline.defs import partitions
from cio_pipeline.settings.addresses import is_plain
from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.load import load_settings
from cio_pipeline.settings.settings import Settings

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
        assert str(refused) == "CIO_LEDGER_URL is wrong: special characters in its user and password must be percent-encoded."  # noqa: PT017
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


@pytest.mark.parametrize("url", ["https://example.com/tables", "memory://tables", "s4://bucket"])
def test_tables_are_kept_where_they_can_be_written_and_last(env: pytest.MonkeyPatch, url: str) -> None:
    env.setenv("CIO_DATA_DIR", url)
    env.setenv("CIO_LEDGER_URL", "postgresql://user@host/db")
    with pytest.raises(SettingsError, match=r"^CIO_DATA_DIR is wrong: must be a "):
        load_settings()


def test_a_storage_whose_package_is_missing_is_said_by_the_settings_name(env: pytest.MonkeyPatch) -> None:
    def missing(scheme: str) -> None:
        raise ImportError(scheme)

    env.setattr("fsspec.get_filesystem_class", missing)
    env.setenv("CIO_SUPPRESSED_FILE", "gs://bucket/list")
    with pytest.raises(SettingsError, match=r"^CIO_SUPPRESSED_FILE is wrong: its storage needs an extra"):
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
    assert found["daily_partitions"].start.date() == settings.start_date
    assert found["backfill_policy"].max_partitions_per_run == settings.days_per_run
    assert found["DAYS_SETTINGS"].late_days == settings.late_days


LISTS: list[tuple[str, tuple[str, ...]]] = [
    ("signed up,order completed", ("signed up", "order completed")),
    ('"signed up","order completed"', ("signed up", "order completed")),
    ("'signed up', 'order completed'", ("signed up", "order completed")),
    ('"signed up,order completed"', ("signed up", "order completed")),
    ("\"signed up\",'order completed',third", ("signed up", "order completed", "third")),
    ('"paid, in full",b', ("paid, in full", "b")),
    ('["a", "b,c", "it\'s \\"d\\"", "[x]", "e;f"]', ("a", "b,c", 'it\'s "d"', "[x]", "e;f")),
    ('\'["a", "b"]\'', ("a", "b")),
    ('[\n  "a",\n  "b"\n]', ("a", "b")),
    ('"$*,utm_*"', ("$*", "utm_*")),
    ("$*,utm_[ab]*", ("$*", "utm_[ab]*")),
    ("a,,b,", ("a", "b")),
    ("a,a", ("a",)),
    ("user's choice,user\u2019s", ("user's choice", "user\u2019s")),
    ("Käse 💡,日本", ("Käse 💡", "日本")),
    ("page (old),{x}", ("page (old)", "{x}")),
    ('""', ()),
    ("' '", ()),
]


@pytest.mark.parametrize("name", ["event_allowlist", "exclude_attributes"])
@pytest.mark.parametrize(("given", "read"), LISTS)
def test_a_list_is_read_in_quotes_and_as_json(env: pytest.MonkeyPatch, name: str, given: str, read: tuple[str, ...]) -> None:
    env.setenv(f"CIO_{name.upper()}", given)
    assert getattr(load_settings(), name) == read


@pytest.mark.parametrize("name", ["CIO_EVENT_ALLOWLIST", "CIO_EXCLUDE_ATTRIBUTES"])
@pytest.mark.parametrize(
    "given",
    [
        *(
            "[a, b]",
            "['a', 'b']",
            '["a", "b"',
            '["a", 1]',
            '["a", ["b"]]',
            "[]",
            '["", " "]',
            '{"a": "b"}',
            "{a,b}",
            "[" * 5000,
        ),
        *("a;b", "a|b", "a\nb", "- a\n- b", "a\tb", "a\uff0cb", "a\u3001b", "a\\,b", r'"a\",b"'),
        *(
            '"a,b',
            "'a,b",
            'a,"b',
            'a",b',
            "a,b'",
            '"a""b"',
            '"a" "b"',
            '"a"b,c',
            "`a`,`b`",
            "\u201ca\u201d,\u201cb\u201d",
            "\u201ca,b\u201d",
        ),
        *(
            "\u00aba\u00bb",
            "\u201ea\u201c",
            "\u2018a\u2019",
            '\'"a"',
            "(a,b)",
            "[Amplitude] a,b,[c",
            "a\u200b,b",
            "\ufeffa,b",
            ",",
            " , ,",
        ),
    ],
)
def test_a_list_that_could_be_meant_otherwise_is_refused(env: pytest.MonkeyPatch, name: str, given: str) -> None:
    env.setenv(name, given)
    with pytest.raises(SettingsError, match=rf"^{name} is wrong: (must be names separated by commas|it names nothing)"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "given", "field", "read"),
    [
        ("CIO_IDENTIFY_BY_EMAIL", '"Yes"', "identify_by_email", True),
        ("CIO_IDENTIFY_BY_EMAIL", " YES ", "identify_by_email", True),
        ("CIO_ANONYMOUS_USERS", "'Identified'", "anonymous_users", "identified"),
        ("CIO_DAYS_PER_RUN", '"7"', "days_per_run", 7),
        ("CIO_REQUESTS_PER_SECOND", "'0.5'", "requests_per_second", 0.5),
        ("CIO_START_DATE", '"2025-02-28"', "start_date", date(2025, 2, 28)),
        ("CIO_START_DATE", '""', "start_date", date(2025, 1, 1)),
        ("POSTHOG_HOST", "'https://eu.posthog.com/'", "posthog_url", "https://eu.posthog.com"),
        ("POSTHOG_HOST", "HTTPS://EU.PostHog.com:8443", "posthog_url", "https://eu.posthog.com:8443"),
        ("POSTHOG_PROJECT_ID", '"12"', "posthog_project_id", "12"),
        (
            "POSTHOG_PROJECT_ID",
            "0185B7E2-0000-4000-8000-00000000ABCD",
            "posthog_project_id",
            "0185B7E2-0000-4000-8000-00000000ABCD",
        ),
        ("CIO_REFUSED_SHARE", "'.5 %'", "refused_share", 0.005),
        ("CIO_REFUSED_SHARE", "100%", "refused_share", 1.0),
        ("CIO_EVENT_ALLOWLIST", '["order # 1"]', "event_allowlist", ("order # 1",)),
        ("CIO_EVENT_ALLOWLIST", "order #1,c#", "event_allowlist", ("order #1", "c#")),
        ("CIO_DATA_DIR", "file:///srv/my #1 data", "data_dir", "/srv/my #1 data"),
        ("CIO_SUPPRESSED_FILE", "/srv/100%25?.csv", "suppressed_file", "/srv/100%25?.csv"),
        ("CUSTOMERIO_TRACKING_ENDPOINT", '"Track-EU.customer.io"', "tracking_url", "https://track-eu.customer.io"),
        ("CUSTOMERIO_TRACKING_ENDPOINT", "http://[::1]:80", "tracking_url", "http://[::1]:80"),
    ],
)
def test_one_pair_of_quotes_around_a_value_and_its_case_do_not_matter(
    env: pytest.MonkeyPatch, name: str, given: str, field: str, read: object
) -> None:
    env.setenv(name, given)
    assert getattr(load_settings(), field) == read


def test_keys_in_quotes_are_taken_without(env: pytest.MonkeyPatch) -> None:
    env.setenv("CUSTOMERIO_API_KEY", ' "key-secret"\r\n')
    assert load_settings().customerio_api_key.get_secret_value() == "key-secret"


@pytest.mark.parametrize("given", ['""', "''", " ", '" "', "\n"])
def test_a_required_setting_of_nothing_but_quotes_is_not_set(env: pytest.MonkeyPatch, given: str) -> None:
    env.setenv("CUSTOMERIO_API_KEY", given)
    with pytest.raises(SettingsError, match=r"^CUSTOMERIO_API_KEY is not set"):
        load_settings()


@pytest.mark.parametrize("name", ["CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "POSTHOG_PERSONAL_API_KEY"])
@pytest.mark.parametrize(
    "given",
    [
        *(
            "s3cret key",
            "s3cret\nkey",
            "s3cret\r\nX: y",
            "s3cret\tkey",
            "s3cret\x00",
            "\u201cs3cret\u201d",
            "s3cret\u201d",
            '"s3cret',
            "s3cret'",
        ),
        *(
            "s3crét",
            "s3cret\u00a0key",
            "s3cret\u200b",
            "\uff53\uff13",
            "Bearer s3cret",
            "basic s3cret",
            "<s3cret>",
            "<your key>",
            "${S3CRET}",
        ),
        *(
            "{{ s3cret }}",
            "your-api-key",
            "your_s3cret",
            "changeme",
            "xxx",
            "phx_xxxx",
            "...",
            "phx_...",
            "a:s3cret",
            "s3cret,b",
            "\U0001f511",
        ),
    ],
)
def test_what_is_no_key_is_refused_and_never_shown(env: pytest.MonkeyPatch, name: str, given: str) -> None:
    if "\x00" in given:
        env.setattr("os.environ", {**os.environ, name: given})
    else:
        env.setenv(name, given)
    with pytest.raises(SettingsError, match=rf"^{name} is wrong: .+\.$") as refused:
        load_settings()
    assert "3c" not in everything_of(refused.value)


def everything_of(error: BaseException | None) -> str:
    return "" if error is None else f"{error!r}{everything_of(error.__cause__)}{everything_of(error.__context__)}"


def test_a_projects_key_is_no_personal_one(env: pytest.MonkeyPatch) -> None:
    env.setenv("POSTHOG_PERSONAL_API_KEY", "phc_abc")
    with pytest.raises(SettingsError, match=r"personal API key \(phx_\.\.\.\), not the project's own"):
        load_settings()


WRONG = {
    "CIO_DAYS_PER_RUN": [
        "nan",
        "inf",
        "1e1",
        "1_0",
        "\uff17",
        "7 days",
        "7.0",
        "+7",
        "-1",
        "0x7",
        "367",
        "9" * 400,
        "7;",
        "'7",
    ],
    "CIO_LATE_DAYS": ["31", "-0", "two"],
    "CIO_REQUESTS_PER_SECOND": [
        "nan",
        "inf",
        "-inf",
        "1e2",
        "0",
        "0.0",
        "1001",
        "1,5",
        "1_0",
        "Infinity",
        "\u0663",
        "1.",
        ".5",
        "9" * 400,
    ],
    "CIO_START_DATE": [
        "2025-02-30",
        "2025-13-01",
        "0001-01-01",
        "9999-01-01",
        "2025-1-1",
        "01.02.2025",
        "2025-01-01T00:00",
        "today",
    ],
    "CIO_REFUSED_SHARE": ["nan", "1", "1.0", "2", "101%", "1e-2", "1_0%", "-0", "+1%", "\u0663%", "1%%", "%", ".", "0,01"],
    "CIO_LEDGER_URL": [
        *("sqlite://folder/ledger.db", "sqlite://localhost/ledger.db", "sqlite+aiosqlite:////folder/ledger.db", "sqlite:/x.db"),
        "sqlite:////folder/ledger.db # the ledger",
    ],
    "CIO_DATA_DIR": [
        *("s3:/bucket/x", "s3:bucket", "C:/data", "C:\\data", "/srv/$USER/x", "/srv/$(pwd)/x", "{{ data }}/x"),
        *("/srv/data # the tables", "/srv/a?b", "/srv/a%20b", "file://srv/data"),
    ],
    "CIO_SUPPRESSED_FILE": ["s4://s3cret:s3cret@bucket/list", "https:/host/list", "/srv/list.csv # names"],
    "CIO_BATCH_EXPORT_URL": ["s4://bucket", "S3://bucket", "://bucket"],
    "CIO_EVENT_ALLOWLIST": ["signed up # the first", "signed up #"],
    "CIO_OTHER_NAMES": ["'POSTHOG_FOO", "[POSTHOG_FOO]", ","],
    "CIO_IDENTIFY_BY_EMAIL": ["maybe", "Yes;", "Yes No", "y", "\u201cYes\u201d", '"Yes', "Yes\nNo"],
    "CIO_ANONYMOUS_USERS": ["some", "all,emails", "anonymous"],
    "POSTHOG_PROJECT_ID": ["your-project-id", "default", "1-2", "1/../2", "phc_abc", "1 2", "#1", "\u0661"],
    "POSTHOG_HOST": [
        *("us.posthog.com", "https://us.posthog.com/project/1", "https://us.posthog.com/api", "https://us.posthog.com?x=1"),
        *(
            "https://us.posthog.com#x",
            "https://us.posthog.com?",
            "https://me:s3cret@us.posthog.com",
            "https://us.i.posthog.com",
        ),
        *(
            "ftp://us.posthog.com",
            "https://us posthog.com",
            "https://us.posthog.com:0",
            "https://us.posthog.com:99999",
            "https://a:",
        ),
        *("https://us.posthog.com:port", "https:///x", "https:us.posthog.com", "//us.posthog.com", "https://us..posthog.com"),
        *(
            "https://üs.posthog.com",
            "https://us.posthog.com,",
            "https://[::1",
            "https://1.2.3",
            "https://0x7f000001",
            "https://-a.com",
        ),
        *(
            "https://us.posthog.com\\@evil.example",
            "http://us.posthog.com",
            "https://" + "a" * 64 + ".com",
        ),
    ],
    "CUSTOMERIO_TRACKING_ENDPOINT": [
        *(
            "track.customer.io/api",
            "https://track.customer.io/api/v1",
            "http://track.customer.io",
            "https://api.customer.io",
            "track",
        ),
        *(
            "https://cdp.customer.io",
            "https://me:s3cret@track.customer.io",
            "track.customer.io:443",
            "eu",
            "https://",
            "http://8.8.8.8",
        ),
        *("http://2130706433", "http://[::ffff:8.8.8.8]", "http://localhost.example.com", "http://127.0.0.1.example.com"),
    ],
}
LIBRARY = re.compile(r"Input|should|pydantic|parse|pattern|\^|invalid|literal|valid ", re.IGNORECASE)


@pytest.mark.parametrize(("name", "given"), [(name, given) for name, all_ in WRONG.items() for given in all_])
def test_each_wrong_value_is_refused_in_our_own_words(env: pytest.MonkeyPatch, name: str, given: str) -> None:
    env.setenv(name, given)
    with pytest.raises(SettingsError, match=rf"^{name} is wrong: .+\.$") as refused:
        load_settings()
    said = str(refused.value)
    assert not LIBRARY.search(said), said
    assert "s3cret" not in everything_of(refused.value)
    assert "\n" not in said


@pytest.mark.parametrize("field", Settings.model_fields.values(), ids=lambda field: str(field.alias))
def test_every_setting_says_what_it_must_be(env: pytest.MonkeyPatch, field: FieldInfo) -> None:
    """Also those that are read by their type alone."""
    is_any_text = field.annotation in (str, SecretStr, SecretStr | None, tuple[str, ...])
    env.setenv(str(field.alias), "\u201d" if is_any_text else "?")
    with pytest.raises(SettingsError, match=rf"^{field.alias} is wrong: .+\.$") as refused:
        load_settings()
    assert not LIBRARY.search(str(refused.value)), str(refused.value)


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        *((f"http://{host}", False) for host in ("localhost:1", "127.0.0.1", "[::1]", "10.1.2.3", "192.168.0.1", "172.16.0.1")),
        *(
            (f"http://{host}", False)
            for host in ("posthog", "nas.local", "a.b.internal", "x.svc.cluster.local", "app.localhost")
        ),
        *(
            (f"http://{host}", True)
            for host in ("8.8.8.8", "172.32.0.1", "[2606:4700::1]", "a.com", "local.com", "1", "0x7f.1")
        ),
        ("http://[::ffff:8.8.8.8]", True),
        ("http://me:pw@a.com/list", True),
        ("HTTP://a.com", True),
        ("https://a.com", False),
        ("s3://a.com", False),
        ("", False),
    ],
)
def test_plain_http_goes_to_this_machine_and_private_networks_only(url: str, plain: bool) -> None:
    assert is_plain(url) is plain


@pytest.mark.parametrize(
    "name", ["CUSTOMERIO_TRACKING_ENDPOINT", "POSTHOG_HOST", "CIO_SUPPRESSED_FILE", "CIO_BATCH_EXPORT_URL"]
)
def test_plain_http_elsewhere_needs_a_setting_that_says_so(env: pytest.MonkeyPatch, name: str) -> None:
    env.setenv(name, "http://plain.example.com")
    with pytest.raises(SettingsError, match=rf"^{name} is wrong: it must begin with https://, unless CIO_ALLOW_PLAIN_HTTP=Yes"):
        load_settings()
    env.setenv("CIO_ALLOW_PLAIN_HTTP", "Yes")
    load_settings()


def test_the_ledger_keeps_more_days_than_the_schedule_goes_back(env: pytest.MonkeyPatch) -> None:
    """A run of the schedule begins `CIO_LATE_DAYS` days before yesterday, the ledger `CIO_LEDGER_DAYS` days before today."""
    env.setenv("CIO_LATE_DAYS", "10")
    for days in ("7", "11"):
        env.setenv("CIO_LEDGER_DAYS", days)
        with pytest.raises(
            SettingsError, match=r"^CIO_LEDGER_DAYS is wrong: must be at least 12, two more than .+ \(10\), or .+\.$"
        ):
            load_settings()
    env.setenv("CIO_LEDGER_DAYS", "12")
    assert load_settings().ledger_days == 12
