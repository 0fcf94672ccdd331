"""`make ui`: Dagster is started with the settings as they hold, where it finds no `.env` to put over them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from cio_pipeline.cli import ui
from cio_pipeline.cli.commands import main
from cio_pipeline.settings import environment
from cio_pipeline.settings.places import PROJECT

KEYS = ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "POSTHOG_PROJECT_ID", "POSTHOG_PERSONAL_API_KEY")


class Started:
    """Stands for the process."""

    pid = 0

    def __init__(self, command: list[str], **given: Any) -> None:
        self.command, self.given = command, given

    def wait(self) -> int:
        return 0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Started]:
    """What `make ui` starts, beside a `.env` and with another value of one of its names in the environment."""
    found: list[Started] = []

    def start(*given: Any, **more: Any) -> Started:
        found.append(Started(*given, **more))
        return found[-1]

    (tmp_path / ".env").write_text("".join(f"{name}=1\n" for name in KEYS) + f"CIO_DATA_DIR={tmp_path}/data\nCIO_LATE_DAYS=4\n")
    monkeypatch.setattr(environment, "ENV_FILE", tmp_path / ".env")
    monkeypatch.setattr("os.environ", {"PATH": "/bin", "CIO_LATE_DAYS": "5"})
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(ui, "interruptible", lambda: None)
    monkeypatch.setattr(ui, "end", lambda _: None)
    return found


def test_dagster_gets_the_environment_first_and_finds_no_env_file(
    started: list[Started], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ui"]) == 0
    [dagster] = started
    home = tmp_path / "data" / "dagster"
    assert dagster.given["cwd"] == home
    assert not (home / ".env").exists()
    assert (home / "dagster.yaml").read_text() == (PROJECT / "dagster.yaml").read_text()
    wanted = {"CIO_LATE_DAYS": "5", "POSTHOG_PROJECT_ID": "1", "DAGSTER_HOME": str(home), "PYTHONPATH": str(PROJECT)}
    assert wanted.items() <= dagster.given["env"].items()
    assert dagster.command[dagster.command.index("-w") + 1] == str(PROJECT / "workspace.yaml")
    assert capsys.readouterr().out.startswith("Sends to https://track.customer.io; the tables are in ")


def test_a_wrong_setting_is_one_sentence_and_nothing_is_started(
    started: list[Started], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".env").write_text("CIO_DATA_DIR: /x\n")
    assert main(["ui"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert started == []
