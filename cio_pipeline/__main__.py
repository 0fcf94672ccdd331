"""The command line: `python -m cio_pipeline run | ui | demo | dev`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cio_pipeline.settings.envfile import SettingsError

STOPPED = "Interrupted.\n"


def main(arguments: list[str]) -> int:
    """Runs the command that the arguments name; gives the exit status."""
    parser = argparse.ArgumentParser(prog="cio_pipeline", description="PostHog events into Customer.io.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run days headless, against what the environment or .env names")
    run.add_argument("--partition", help="a day, YYYY-MM-DD")
    run.add_argument("--from", dest="first", help="the first of several days")
    run.add_argument("--to", dest="last", help="the last of several days")
    run.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    run.add_argument("--resend", action="store_true", help="send what was delivered, is unchanged or was refused, too")
    run.add_argument("--limit", type=_count, help="send only each day's first so many customers and their events")
    run.add_argument("--hold-recent-events", type=_hours, metavar="HOURS", help="keep events younger than that for a later run")
    commands.add_parser("ui", help="open the Dagster UI on what the environment or .env names")
    commands.add_parser("demo", help="run three days against the sandbox and print what was delivered")
    commands.add_parser("dev", help="open the Dagster UI on the sandbox")
    given = parser.parse_args(arguments)
    chosen = {name: getattr(given, name, None) for name in ("dry_run", "resend", "limit", "hold_recent_events")}
    try:
        return _command(given, chosen)
    except SettingsError as wrong:
        return _wrong(wrong)
    except KeyboardInterrupt:
        sys.stderr.write(STOPPED)
        return 130


def _command(given: argparse.Namespace, chosen: dict[str, Any]) -> int:
    """Each command loads no more than it needs: the sandbox's read no settings."""
    if given.command == "demo":
        from cio_pipeline.sandbox.demo import demo

        return demo()
    if given.command == "dev":
        from cio_pipeline.sandbox.dev import dev

        return dev()
    if given.command == "ui":
        from cio_pipeline.cli.ui import ui

        return ui()
    return _run(given.first or given.partition, given.last or given.first or given.partition, chosen)


def _run(first: str | None, last: str | None, chosen: dict[str, Any]) -> int:
    from cio_pipeline.settings.settings import load_settings

    settings = load_settings()
    from cio_pipeline.cli.run import run_days
    from cio_pipeline.defs.partitions import DaysError

    if not first or not last:
        return _wrong("Say which days to run: PARTITION=2026-03-02, or FROM=2026-03-02 TO=2026-03-04.")
    try:
        return run_days(first, last, settings, chosen)
    except DaysError as wrong:
        return _wrong(wrong)


def _wrong(sentence: object) -> int:
    from cio_pipeline.cli.terminal import complain

    complain(sentence)
    return 2


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a number of customers, from 1")
    return int(text)


def _hours(text: str) -> float:
    try:
        hours = float(text)
    except ValueError:
        hours = -1.0
    if not 0 <= hours < float("inf"):
        raise argparse.ArgumentTypeError("a number of hours")
    return hours


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
