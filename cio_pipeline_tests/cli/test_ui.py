"""`make ui`: Dagster is started with the settings as they hold, where it finds no `.env` to put over them."""

from __future__ import annotations

import re
import socket
import subprocess
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cio_pipeline.cli import ui
from cio_pipeline.cli.commands import main
from cio_pipeline.sandbox import demo, dev
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.settings import environment
from cio_pipeline.settings.places import PROJECT, WORKSPACE_YAML

KEYS = ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "POSTHOG_PROJECT_ID", "POSTHOG_PERSONAL_API_KEY")


class Started:
    """Stands for the process."""

    pid = 0

    def __init__(self, command: list[str], **given: Any) -> None:
        self.command, self.given = command, given

    def poll(self) -> int:
        return 0

    def wait(self) -> int:
        return 0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Started]:
    """What `make ui` starts, beside a `.env` and with another value of one of its names in the environment."""
    found: list[Started] = []
    import_module("cio_pipeline.defs.partitions")  # what it imports starts processes, which cannot be replaced

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
    wanted[environment.KEEP_ENGINES] = "yes"
    assert wanted.items() <= dagster.given["env"].items()
    assert dagster.command[dagster.command.index("-w") + 1] == str(WORKSPACE_YAML)
    assert capsys.readouterr().out.startswith("Sends to https://track.customer.io; the tables are in ")


def test_a_wrong_setting_is_one_sentence_and_nothing_is_started(
    started: list[Started], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".env").write_text("CIO_DATA_DIR: /x\n")
    assert main(["ui"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert started == []


def test_a_second_ui_on_the_same_runs_says_that_one_runs_already(
    started: list[Started], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "data" / "dagster"
    home.mkdir(parents=True)
    with ui.only_one(home):
        assert main(["ui"]) == 2
    assert capsys.readouterr().err == f"Dagster's UI and daemon are already running on {home}: end them first (Ctrl-C).\n"
    assert started == []
    assert main(["ui"]) == 0


@pytest.mark.parametrize("command", ["ui", "dev"])
def test_without_a_free_port_one_sentence_says_so(
    started: list[Started], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(ui, "FIRST_PORT", taken.getsockname()[1])
        monkeypatch.setattr(ui, "PORTS", 1)
        monkeypatch.setattr(dev, "sandbox", lambda *_: nullcontext(Sandbox("http://127.0.0.1:1", "http://127.0.0.1:1")))
        monkeypatch.setattr(dev.dev, "__defaults__", (tmp_path / "dev", 1))
        monkeypatch.setattr(dev, "interruptible", lambda: None)
        assert main([command]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"No port from \d+ to \d+ is free for the UI: end a program that listens on one\.\n", said)
    assert not started


@pytest.mark.parametrize("module", [demo, dev])
def test_a_sandbox_where_nothing_can_be_written_says_so_in_one_sentence(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("no folder")
    command = module.__name__.rpartition(".")[2]
    sandbox = getattr(module, command)
    monkeypatch.setattr(module, "interruptible", lambda: None)
    monkeypatch.setattr(sandbox, "__defaults__", (tmp_path / "data" / command, *sandbox.__defaults__[1:]))
    assert main([command]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"The sandbox's folder \S+ cannot be emptied \(Not a directory\): .+ of your own\.\n", said)


def test_the_sandbox_is_started_without_pythons_own_settings_of_the_caller() -> None:
    for command in ("demo", "dev"):
        recipe = subprocess.run(["make", "-n", command], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        assert f"python -E -m cio_pipeline {command}" in recipe
