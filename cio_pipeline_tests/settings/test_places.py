"""Paths mean the same from every working directory, unusable ones are one sentence, and the sandbox stays on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cio_pipeline.sandbox.processes import sandbox_folder
from cio_pipeline.settings import places
from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.load import load_settings
from cio_pipeline.settings.places import PROJECT, dagster_home, is_loopback, redacted


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "POSTHOG_PERSONAL_API_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("POSTHOG_PROJECT_ID", "1")
    return monkeypatch


def test_paths_are_absolute_and_the_same_from_every_working_directory(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    env.setenv("HOME", str(tmp_path))
    env.setenv("CIO_SUPPRESSED_FILE", "lists/names.csv")
    env.chdir(tmp_path)
    settings = load_settings()
    assert settings.data_dir == str(PROJECT / "data")
    assert settings.ledger_url == f"sqlite:///{PROJECT / 'data' / 'ledger.db'}"
    assert settings.suppressed_file == str(PROJECT / "lists" / "names.csv")
    env.setenv("CIO_DATA_DIR", "~/cio")
    env.setenv("CIO_LEDGER_URL", "sqlite:///~/ledger.db")
    settings = load_settings()
    assert (settings.data_dir, settings.ledger_url) == (f"{tmp_path}/cio", f"sqlite:///{tmp_path}/ledger.db")
    env.setenv("CIO_LEDGER_URL", "sqlite:///made/ledger.db")
    assert load_settings().ledger_url == f"sqlite:///{PROJECT}/made/ledger.db"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CIO_DATA_DIR", "$HOME/data"),
        ("CIO_DATA_DIR", "~nobody-of-this-name/data"),
        ("CIO_DATA_DIR", '"/data'),
        ("CIO_SUPPRESSED_FILE", "${HOME}/list"),
        ("CIO_LEDGER_URL", "sqlite://"),
        ("CIO_LEDGER_URL", "sqlite:///:memory:"),
        ("CIO_LEDGER_URL", "sqlite:///file:ledger.db?uri=true"),
    ],
)
def test_a_path_that_means_no_certain_place_is_refused(env: pytest.MonkeyPatch, name: str, value: str) -> None:
    env.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"^{name} is wrong: .+\.$"):
        load_settings()


def test_without_a_checkout_a_relative_path_counts_from_the_working_directory(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "site-packages").mkdir()
    env.setattr(places, "PROJECT", tmp_path / "site-packages")
    env.setenv("CIO_LEDGER_URL", "sqlite:///made/ledger.db")
    env.chdir(tmp_path)
    settings = load_settings()
    assert (settings.data_dir, settings.ledger_url) == (f"{tmp_path}/data", f"sqlite:///{tmp_path}/made/ledger.db")
    assert settings.places == {"CIO_DATA_DIR": settings.data_dir, "CIO_LEDGER_URL": settings.ledger_url}


def test_without_a_checkout_the_sandbox_empties_no_folder_but_its_own(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sandbox_folder("demo") == PROJECT / "data" / "demo"
    env.setattr(places, "PROJECT", tmp_path / "site-packages")
    env.chdir(tmp_path)
    assert sandbox_folder("demo") == tmp_path / "cio_pipeline_demo"


def test_a_data_dir_that_is_a_file_or_cannot_be_written_is_refused(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for value in ("file", "file/below"):
        env.setenv("CIO_DATA_DIR", str(tmp_path / value))
        with pytest.raises(SettingsError, match=r"^CIO_DATA_DIR is wrong: .*/file is not a folder\.$"):
            load_settings()
    env.setattr(os, "access", lambda path, mode: False)
    env.setenv("CIO_DATA_DIR", str(tmp_path / "new"))
    with pytest.raises(SettingsError, match=r"^CIO_DATA_DIR is wrong: .* cannot be written to\.$"):
        load_settings()
    assert not (tmp_path / "new").exists()


def test_a_folder_for_dagster_that_cannot_be_made_is_refused(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "dagster").write_text("")
    for data_dir, why in (
        (tmp_path, r".*/dagster is not a folder\."),
        (tmp_path / ("a" * 300), r".* cannot be created \(File name too long\)\."),
    ):
        with pytest.raises(SettingsError, match=rf"^CIO_DATA_DIR is wrong: {why}$"):
            dagster_home(str(data_dir))


def test_a_folder_for_dagster_may_stand_in_quotes(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    env.setenv("DAGSTER_HOME", f'"{tmp_path}"')
    assert dagster_home("data") == tmp_path
    assert os.environ["DAGSTER_HOME"] == str(tmp_path)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:1", True),
        ("http://[::1]:1", True),
        ("http://localhost", True),
        ("/a/path", True),
        ("sqlite:////a/ledger.db", True),
        ("postgresql://u:p@127.0.0.1/d", True),
        ("postgresql://u:p@/d?host=/run/sockets", True),
        ("postgresql://u:p@db.example.com/d", False),
        ("postgresql://u:p@127.0.0.1/d?hostaddr=10.0.0.1", False),
        ("postgresql:///d", False),
        ("https://track.customer.io", False),
        ("http://127.0.0.1.example.com", False),
        ("http://10.0.0.1", False),
        ("s3://bucket/x", False),
    ],
)
def test_loopback_addresses_are_told_from_all_others(url: str, here: bool) -> None:
    assert is_loopback(url) is here


@pytest.mark.parametrize("name", ["CUSTOMERIO_TRACKING_ENDPOINT", "POSTHOG_HOST", "CIO_LEDGER_URL", "CIO_SUPPRESSED_FILE"])
def test_the_sandbox_refuses_any_address_that_is_not_loopback(env: pytest.MonkeyPatch, name: str) -> None:
    here = {"CUSTOMERIO_TRACKING_ENDPOINT": "http://127.0.0.1:1", "POSTHOG_HOST": "http://127.0.0.1:2", "CIO_SANDBOX": "Yes"}
    for one, value in here.items():
        env.setenv(one, value)
    load_settings()
    env.setenv(name, "postgresql://u:secret@db.example.com/x" if name == "CIO_LEDGER_URL" else "https://elsewhere.example.com")
    with pytest.raises(SettingsError, match=f"^{name} is refused: the sandbox reads and sends on this machine only"):
        load_settings()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/a/path", "/a/path"),
        ("sqlite:////a/ledger.db", "/a/ledger.db"),
        ("postgresql://u:secret@db.example.com:5432/d?password=secret", "postgresql://db.example.com:5432/d"),
        ("s3://key:secret@bucket/tables", "s3://bucket/tables"),
        ("http://127.0.0.1:1", "http://127.0.0.1:1"),
        ("postgresql+psycopg://u:a/b?c#d@db.example.com:5432/cio?password=secret", "postgresql://db.example.com:5432/cio"),
        ("s3://key:sec/ret@bucket/folder", "s3://***"),
    ],
)
def test_a_place_is_shown_without_its_login(place: str, said: str) -> None:
    assert redacted(place) == said
