"""The commands of the command line: each is documented, and each ends in one sentence and an exit status."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from cio_pipeline.cli.commands import cli, main
from cio_pipeline.settings.places import PROJECT

README = (PROJECT / "README.md").read_text()
MAKEFILE = (PROJECT / "Makefile").read_text()


@pytest.mark.parametrize("command", cli.commands.values(), ids=lambda command: str(command.name))
def test_a_command_and_its_options_are_in_the_readme_and_have_a_make_target(command: click.Command) -> None:
    assert f"`{command.name}`" in README
    assert re.search(rf"(?m)^{command.name}: ", MAKEFILE)
    for option in command.params:
        assert [name for name in option.opts if f"`{name}" in README or f" {name} " in README], option.opts


def test_the_readme_names_no_option_that_does_not_exist() -> None:
    known = {name for command in cli.commands.values() for option in command.params for name in option.opts}
    named = set(re.findall(r"--[a-z][a-z-]+", README))
    assert named - known == {"--help"}


@pytest.mark.parametrize("command", cli.commands.values(), ids=lambda command: str(command.name))
def test_a_commands_help_tells_its_exit_statuses(command: click.Command) -> None:
    help_text = str(command.help)
    assert "Exit status:" in help_text
    assert ("Examples:" in help_text) == bool(command.params)


def test_without_days_a_run_asks_for_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "POSTHOG_PROJECT_ID", "POSTHOG_PERSONAL_API_KEY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("CIO_DATA_DIR", str(tmp_path))
    assert main(["run"]) == 2
    assert capsys.readouterr().err == ("Name the days to run: --partition 2026-03-02, or --from 2026-03-02 --to 2026-03-04.\n")


@pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["dry-run"], ["explain", "user-000017"]])
@pytest.mark.parametrize("other", ["--from", "--to"])
def test_one_day_and_several_are_not_named_at_once(
    command: list[str], other: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "POSTHOG_PROJECT_ID", "POSTHOG_PERSONAL_API_KEY"):
        monkeypatch.setenv(name, "1")
    for function in ("run.run_days", "run.dry_run", "explain.explain_person"):
        monkeypatch.setattr(f"cio_pipeline.cli.{function}", lambda *_: 0)
    assert main([*command, "--partition", "2026-03-02", other, "2026-03-03"]) == 2
    assert "Error: --partition cannot be combined with --from or --to." in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "dry-run"])
def test_a_run_is_given_the_limits_that_were_chosen(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "POSTHOG_PROJECT_ID", "POSTHOG_PERSONAL_API_KEY"):
        monkeypatch.setenv(name, "1")
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        f"cio_pipeline.cli.run.{'run_days' if command == 'run' else 'dry_run'}", lambda *rest: given.append(rest[-1])
    )
    main([command, "--partition", "2026-03-02", "--max-campaign-events", "0", "--max-new-customers", "7"])
    assert {name: given[0][name] for name in ("max_campaign_events", "max_new_customers")} == {
        "max_campaign_events": 0,
        "max_new_customers": 7,
    }


@pytest.mark.parametrize("options", [["--limit", "0"], ["--hold-recent-events", "nan"], ["--hold-recent-events", "-1"], ["x"]])
def test_a_wrong_option_ends_with_status_2(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--partition", "2026-03-02", *options]) == 2
    assert "Error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "other",
    [
        ["--partition", "2026-03-02"],
        ["--limit", "1"],
        ["--hold-recent-events", "0"],
        ["--max-campaign-events", "0"],
        ["--dry-run"],
        ["--resend"],
    ],
)
def test_today_goes_with_no_other_option(other: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--today", *other]) == 2
    assert "--today cannot be combined with other options." in capsys.readouterr().err


def test_make_passes_its_variables_on_to_the_commands() -> None:
    def made(*words: str) -> list[str]:
        told = subprocess.run(["make", "-n", *words], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
        return told.splitlines()[-1].partition("cio_pipeline ")[2].split()

    assert made("run", "PARTITION=2026-03-02", "LIMIT=10", "RESEND=1") == [
        *("run", "--partition", '"2026-03-02"', "--limit", '"10"', "--resend")
    ]
    assert made("run", "FROM=a", "TO=b", "DRY_RUN=1", "HOLD_RECENT_EVENTS=72") == [
        *("dry-run", "--from", '"a"', "--to", '"b"', "--hold-recent-events", '"72"')
    ]
    assert made("run", "TODAY=1") == ["run", "--today"]
    assert made("explain", "WHO=user-17", "FROM=a") == ["explain", '"user-17"', "--from", '"a"']
    assert made("redeliver", "PARTITION=a", "REASON=b") == ["redeliver", "--partition", '"a"', "--reason", '"b"']
