"""The whole way, as a user runs it: `make run`'s command against a local PostHog and a local Customer.io.

It is a process of its own where that shows something: in the first test, in that of `.env`, and in test_isolation.py.
"""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest
import requests

from cio_pipeline.cli.commands import main
from cio_pipeline.sandbox.processes import Sandbox, bare_environment, sandbox
from cio_pipeline_tests.postgres import URL_PASSWORD, database

FIRST, LAST = "2026-03-01", "2026-03-02"


@dataclass
class Ran:
    """What became of a command."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Run:
    """Runs the command with settings of its own: as a process, or with `in_process` in this one, without its imports."""

    services: Sandbox
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    settings: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, **settings: str) -> Ran:
        command = [sys.executable, "-m", "cio_pipeline", "run", *arguments]
        self.folder.mkdir(exist_ok=True)
        ran = subprocess.run(
            command,
            env=self._environment(date(2026, 3, 1), settings),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def in_process(self, *arguments: str, **settings: str) -> Ran:
        """With the partitions that this process has, from 2025 on."""
        with self.monkeypatch.context() as changed:
            for name, value in self._environment(date(2025, 1, 1), settings).items():
                changed.setenv(name, value)
            self.capsys.readouterr()
            status = main(["run", *arguments])
        said = self.capsys.readouterr()
        return Ran(status, said.out, said.err)

    def _environment(self, start: date, settings: dict[str, str]) -> dict[str, str]:
        return self.services.environment(self.folder / "data", start, **{**self.settings, **settings})

    def requests(self) -> int:
        return int(requests.get(f"{self.services.customerio}/sandbox/requests", timeout=30).json()["requests"])

    def events(self) -> int:
        people = requests.get(f"{self.services.customerio}/sandbox/people", timeout=30).json()
        return sum(len(person["events"]) for person in people)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    with sandbox(date(2026, 3, 1), days=2) as services:
        yield Run(services, tmp_path, monkeypatch, capsys)


def test_days_arrive_once_and_late_events_after_them(run: Run) -> None:
    first = run("--from", FIRST, "--to", LAST)
    assert (first.returncode, first.stderr) == (0, "")
    where, *lines, last = first.stdout.splitlines()
    assert re.fullmatch(
        r"The rules refused \d of 2,\d{3} events, 0\.\d+ % \(CIO_REFUSED_SHARE allows 1 % of a day\): \d because .+"
        r" The table `rejects` has each of them\.",
        last,
    )
    assert where == (
        f"Reads {run.services.posthog}, sends to {run.services.customerio}; the tables are in {run.folder}/data,"
        f" the ledger is {run.folder}/data/ledger.db, Dagster's runs are in {run.folder}/data/dagster."
    )
    assert [line.split(":")[0] for line in lines if " events read" in line] == ["History", FIRST, LAST]
    assert {line.split(":")[0] for line in lines} == {"History", FIRST, LAST}, "nothing of Dagster's own"
    delivered = run.events()
    assert delivered > 1000
    assert run.requests() == 3
    written = [path for path in (run.folder / "data").rglob("*") if path.is_file()]
    assert len(written) > 5
    assert not [path for path in written if stat.S_IMODE(path.stat().st_mode) & 0o077], "all of it is the owner's alone"

    again = run("--from", FIRST, "--to", LAST)
    assert again.returncode == 0
    assert run.requests() == 4, "only the credentials were checked"

    late = [
        {
            "uuid": f"00000000-0000-4000-8000-00000000000{number}",
            "event": "order placed",
            "distinct_id": f"late-{number}",
            "timestamp": "2026-03-02T23:59:59.999999Z",
            "properties": {},
        }
        for number in range(10)
    ]
    requests.post(f"{run.services.posthog}/sandbox/events", json=late, timeout=30).raise_for_status()
    third = run("--partition", LAST, CIO_JSON_LOGS="Yes")
    assert third.returncode == 0
    assert run.events() == delivered + 10
    is_logged_as_json(third)


def is_logged_as_json(ran: Ran) -> None:
    """What a run of the last day prints is on stderr too, a line of JSON each, with the day and one run's id."""
    logged = [json.loads(line) for line in ran.stderr.splitlines()]
    assert len(logged) > 2
    assert [line["message"] for line in logged] == [line.strip() for line in ran.stdout.splitlines()[1 : 1 + len(logged)]]
    assert {line["day"] for line in logged} == {LAST}
    assert len({line["run_id"] for line in logged}) == 1


def test_the_ledger_may_be_on_postgresql(run: Run, postgres_server: str) -> None:
    with database(postgres_server, "end_to_end") as url:
        run.settings["CIO_LEDGER_URL"] = url
        first = run.in_process("--from", FIRST, "--to", LAST)
        assert (first.returncode, first.stderr) == (0, "")
        delivered = run.events()
        assert delivered > 1000
        assert run.in_process("--from", FIRST, "--to", LAST).returncode == 0
        assert (run.requests(), run.events()) == (4, delivered), "the second run checked the credentials only"
    gone = run.in_process("--partition", FIRST)
    assert gone.returncode == 1
    assert gone.stderr.startswith("The ledger's database (CIO_LEDGER_URL) cannot be used")
    written = [path for path in run.folder.rglob("*") if path.is_file()]
    assert not [path for path in written if path.name == "ledger.db" or URL_PASSWORD.encode() in path.read_bytes()]
    assert URL_PASSWORD not in first.stdout + gone.stdout + gone.stderr


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [
        ("POSTHOG_PERSONAL_API_KEY", "phx_wrong_secret", "POSTHOG_PERSONAL_API_KEY is not accepted by PostHog (401).\n"),
        (
            "CUSTOMERIO_API_KEY",
            "wrong_secret",
            "CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY are not accepted by Customer.io (401)",
        ),
    ],
)
def test_a_wrong_key_is_one_sentence_and_nothing_is_sent(run: Run, setting: str, value: str, sentence: str) -> None:
    refused = run.in_process("--partition", FIRST, **{setting: value})
    assert refused.returncode != 0
    assert refused.stderr.startswith(sentence)
    assert len(refused.stderr.splitlines()) == 1
    assert run.events() == 0
    assert not (run.folder / "data" / "posthog_events").exists()
    assert value not in refused.stdout + refused.stderr
    written = [path.read_bytes() for path in run.folder.rglob("*") if path.is_file()]
    assert not [content for content in written if value.encode() in content]


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["--partition", FIRST], {"CIO_ANONYMOUS_USERS": "some"}, "CIO_ANONYMOUS_USERS is wrong"),
        (["--partition", "2024-12-31"], {}, "2024-12-31 is not a partition: days go from 2025-01-01 (CIO_START_DATE)"),
        (["--from", LAST, "--to", FIRST], {}, "FROM (2026-03-02) comes after TO (2026-03-01)"),
    ],
)
def test_a_wrong_setting_or_day_is_one_sentence_and_exit_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    settings: dict[str, str],
    sentence: str,
) -> None:
    nowhere = Sandbox("http://127.0.0.1:1", "http://127.0.0.1:1")
    refused = Run(nowhere, tmp_path, monkeypatch, capsys).in_process(*arguments, **settings)
    assert refused.returncode == 2
    assert refused.stderr.startswith(sentence)
    assert len(refused.stderr.splitlines()) == 1


def test_env_files_are_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CIO_ANONYMOUS_USERS=some\n")
    refused = run_in_folder(tmp_path, "--partition", FIRST)
    assert refused.returncode == 2
    assert "CUSTOMERIO_SITE_ID, CUSTOMERIO_API_KEY, POSTHOG_PROJECT_ID, POSTHOG_PERSONAL_API_KEY are not set" in refused.stderr


def run_in_folder(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a folder, with an environment that has no settings."""
    command = [sys.executable, "-m", "cio_pipeline", "run", *arguments]
    return subprocess.run(
        command, env=bare_environment(folder), cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
