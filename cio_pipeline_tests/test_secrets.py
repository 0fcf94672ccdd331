"""Keys, logins and addresses of people are in nothing that a failing run writes: its output, its log, Dagster's databases."""

from __future__ import annotations

import logging
import socket
from datetime import date
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from cio_pipeline.cli.commands import main
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.posthog.project import Project
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline_tests import raw_server

DAY = "2025-01-01"
KEYS = {
    "CUSTOMERIO_SITE_ID": "poison-site",
    "CUSTOMERIO_API_KEY": "poison-key",
    "POSTHOG_PERSONAL_API_KEY": "phx_poison",
}
EVENT = {
    "uuid": "00000000-0000-4000-8000-000000000001",
    "event": "signed up",
    "distinct_id": "u1",
    "timestamp": f"{DAY}T10:00:00Z",
    "properties": {"$set": {"email": "poison@example.com"}},
}


def answering(answer: bytes) -> raw_server.Answer:
    return lambda connection, _: connection.sendall(answer)


def reset(connection: socket.socket, _: bytes) -> None:
    connection.close()


ANSWERS: dict[str, raw_server.Answer] = {
    "reset": reset,
    "no HTTP": answering(b"poison\r\n\r\n"),
    "redirect": answering(raw_server.http(b"", "302 Found", "Location: https://poison:poison@a.example.com/?token=poison")),
    "web page": answering(raw_server.http(b"<html>who is poison@example.com?</html>")),
    "unauthorized": answering(raw_server.http(b'{"detail": "poison@example.com"}', "401 Unauthorized")),
    "bad request": answering(raw_server.http(b'{"detail": "poison@example.com", "meta": {"error": "poison@a.b"}}', "400 Bad")),
    "keys": answering(
        raw_server.http(b'{"meta": {"error": "poison-site has no key poison-key (cG9pc29uLXNpdGU6cG9pc29uLWtleQ==)"}}', "401 U")
    ),
    "keys in URLs": answering(raw_server.http(b'{"meta": {"error": "POISON-KEY is not %70oison-key"}}', "400 Bad")),
    "garbled headers": answering(b"HTTP/1.1 400 Bad\r\nA: b\r\npoison-key poison@example.com\r\nContent-Length: 2\r\n\r\n{}"),
    "keys in a redirect": answering(raw_server.http(b"", "302 Found", "Location: https://poison-key.example.com/")),
    "cut short": answering(raw_server.http(b'{"poison"', "200 OK", "Content-Encoding: gzip")),
}


def serve_posthog() -> posthog.PostHog:
    return posthog.serve(iter([EVENT]), Project(key=KEYS["POSTHOG_PERSONAL_API_KEY"]))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Keys that must not be seen again; both services are somewhere else."""
    monkeypatch.setattr("cio_pipeline.http.retry.BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr("cio_pipeline.defs.delivery.run_delivery.RETRY_SECONDS", 0)
    monkeypatch.setattr("cio_pipeline.posthog.client.TRIES", 2)
    monkeypatch.setattr("cio_pipeline.customerio.client.TRIES", 2)
    for name, value in (
        Sandbox("http://127.0.0.1:1", "http://127.0.0.1:1").environment(tmp_path / "data", date(2025, 1, 1)).items()
    ):
        monkeypatch.setenv(name, value)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def fails_without_a_word_of_them(folder: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """Runs the day, which fails, and looks through everything."""
    with caplog.at_level(logging.DEBUG):
        assert main(["run", "--partition", DAY]) != 0
    shown = capsys.readouterr()
    assert shown.err
    assert "Error at" not in shown.err
    databases = [path for path in folder.rglob("*") if path.is_file() and "dagster" in str(path.relative_to(folder))]
    assert databases, "Dagster's databases are looked through, too"
    written = {str(path): path.read_bytes() for path in databases}
    for where, content in {"output": f"{shown.out}{shown.err}".encode(), "log": caplog.text.encode(), **written}.items():
        assert b"poison" not in content.lower(), where
        assert b"cG9pc29u" not in content, where


@pytest.mark.parametrize("answer", ["no HTTP", "redirect", "web page", "unauthorized", "bad request", "garbled headers"])
def test_no_secret_is_shown_whatever_posthog_answers(
    settings: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    answer: str,
) -> None:
    with customerio.serve(site_id="poison-site", api_key="poison-key") as workspace, raw_server.serve(ANSWERS[answer]) as url:
        settings.setenv("CUSTOMERIO_TRACKING_ENDPOINT", workspace.url)
        settings.setenv("POSTHOG_HOST", url)
        fails_without_a_word_of_them(tmp_path, capsys, caplog)


@pytest.mark.parametrize(
    "answer",
    ["reset", "redirect", "bad request", "keys", "keys in URLs", "keys in a redirect", "garbled headers", "cut short"],
)
def test_no_secret_is_shown_whatever_customerio_answers(
    settings: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    answer: str,
) -> None:
    region = raw_server.http(b'{"region": "us"}')

    def instead(connection: socket.socket, request: bytes) -> None:
        if b"/accounts/region" in request.partition(b"\r\n")[0]:
            connection.sendall(region)
        else:
            ANSWERS[answer](connection, request)

    with serve_posthog() as source, raw_server.serve(instead) as url:
        settings.setenv("POSTHOG_HOST", source.url)
        settings.setenv("CUSTOMERIO_TRACKING_ENDPOINT", url)
        fails_without_a_word_of_them(tmp_path, capsys, caplog)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POSTHOG_HOST", "https://nowhere.invalid"),
        ("CIO_SUPPRESSED_FILE", "http://poison:poison@127.0.0.1:1/list?token=poison"),
        ("CIO_LEDGER_URL", "postgresql://poison:poison@127.0.0.1:1/cio"),
        ("CIO_LEDGER_URL", "postgresql://poison:a/poison@127.0.0.1:1/cio"),
        ("CIO_LEDGER_URL", "postgresql://who@127.0.0.1:1/cio?sslmode=poison"),
        ("HTTP_PROXY", "http://poison:poison@127.0.0.1:1"),
    ],
)
def test_no_secret_is_shown_if_a_service_cannot_be_reached(
    settings: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
) -> None:
    settings.delenv("CIO_SANDBOX", raising=False)
    with customerio.serve(site_id="poison-site", api_key="poison-key") as workspace, serve_posthog() as source:
        settings.setenv("POSTHOG_HOST", source.url)
        settings.setenv("CUSTOMERIO_TRACKING_ENDPOINT", workspace.url)
        settings.setenv(name, value)
        fails_without_a_word_of_them(tmp_path, capsys, caplog)


def test_a_bucket_for_the_tables_without_credentials_is_one_sentence(
    settings: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        settings.delenv(name, raising=False)
    settings.setenv("AWS_EC2_METADATA_DISABLED", "true")
    S3FileSystem.clear_instance_cache()  # another test's has its credentials and its server
    settings.delenv("CIO_SANDBOX")
    settings.setenv("CIO_DATA_DIR", "s3://nobodys-bucket/tables")
    settings.setenv("CIO_LEDGER_URL", f"sqlite:///{tmp_path / 'ledger.db'}")
    settings.setenv("DAGSTER_HOME", str(tmp_path))
    with customerio.serve(site_id="poison-site", api_key="poison-key") as workspace, serve_posthog() as source:
        settings.setenv("POSTHOG_HOST", source.url)
        settings.setenv("CUSTOMERIO_TRACKING_ENDPOINT", workspace.url)
        assert main(["run", "--partition", DAY]) == 1
    [said] = capsys.readouterr().err.splitlines()
    assert said.startswith(
        "The bucket s3://nobodys-bucket/tables (CIO_DATA_DIR) cannot be used: no credentials for the storage"
    )
