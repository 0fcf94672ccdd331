"""The commands of `python -m cio_pipeline`, their options and exit statuses.

Each command imports what it needs when it runs, so that `--help` answers at once and the sandbox's commands read no settings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cio_pipeline import __version__
from cio_pipeline.cli.group import Commands
from cio_pipeline.cli.options import days, delivery_options, first_and_last

if TYPE_CHECKING:
    from cio_pipeline.settings.settings import Settings


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cio_pipeline")
def cli() -> None:
    """PostHog events into Customer.io.

    The settings come from the environment, or from .env in the working directory: see docs/settings.md.
    """


@cli.command()
@days
@click.option("--dry-run", is_flag=True, help="The same as the command dry-run.")
@click.option(
    "--today",
    is_flag=True,
    help="Instead of days: deliver what today (UTC) has so far. Once the day is over, a run of it delivers the rest.",
)
@delivery_options
def run(partition: str | None, first: str | None, last: str | None, *, today: bool, **chosen: Any) -> int:
    """Extract days from PostHog and deliver them to Customer.io.

    What Customer.io has already acknowledged is not sent again, so you can run a day at any time.
    --from without --to is one day.

    \b
    Examples:
      python -m cio_pipeline run --partition 2026-03-02
      python -m cio_pipeline run --from 2026-03-02 --to 2026-03-04
      python -m cio_pipeline run --partition 2026-03-02 --limit 10
      python -m cio_pipeline run --today

    \b
    Exit status:
      0    everything was delivered, apart from what you chose to leave out or hold back, and
           the rules refused no larger share of any day's events than CIO_REFUSED_SHARE
      1    otherwise; the last line says why
      2    a setting, a day or an option is wrong
      130  Ctrl-C; a rerun sends the rest
    """
    if today:
        return _today(partition, first, last, *chosen.values())
    if chosen.pop("dry_run"):
        return _dry_run(partition, first, last, chosen)
    settings, start, end = _settings_and_days(partition, first, last)
    from cio_pipeline.cli.run import run_days

    return run_days(start, end, settings, chosen)


@cli.command("dry-run")
@days
@delivery_options
def dry_run(partition: str | None, first: str | None, last: str | None, **chosen: Any) -> int:
    """Do everything but send, and print what would be sent.

    It reads the days from PostHog, derives them in temporary files, and prints new customers (Customer.io bills them), changed
    and unchanged ones, events by name, what the rules refuse, and a sample with personal data masked. Nothing that is stored
    changes. --from without --to is one day.

    \b
    Examples:
      python -m cio_pipeline dry-run --partition 2026-03-02
      python -m cio_pipeline dry-run --from 2026-03-02 --to 2026-03-04

    \b
    Exit status:
      0    the rules would refuse no larger share of any day's events than CIO_REFUSED_SHARE
      1    otherwise, or if the dry run fails; the last line says why
      2    a setting, a day or an option is wrong
      130  Ctrl-C
    """
    return _dry_run(partition, first, last, chosen)


@cli.command()
@click.option("--partition", metavar="DAY", help="Only what was refused of this day, YYYY-MM-DD.")
@click.option("--reason", help="Only what was refused for this reason, as the command refusals prints it.")
def redeliver(**chosen: str | None) -> int:
    """Send again what Customer.io has refused.

    Do this once the cause is fixed. Attributes that have been set since are left out. A refusal is closed when its item is
    accepted, or is not to be sent any more: the person is suppressed, or the day's tables no longer have it.

    \b
    Examples:
      python -m cio_pipeline redeliver
      python -m cio_pipeline redeliver --partition 2026-03-02 --reason "invalid name"

    \b
    Exit status:
      0    Customer.io has accepted all of them that are to be sent
      1    some are still refused, or changed since, so that a run of their day sends them; or the
           run failed; the last line says which
      2    a setting or an option is wrong
      130  Ctrl-C; a rerun sends the rest
    """
    settings = _settings()
    from cio_pipeline.cli.run import redeliver as run_redelivery

    return run_redelivery(settings, chosen)


@cli.command()
@click.option("--partition", metavar="DAY", help="Only what was refused of this day, YYYY-MM-DD.")
@click.option("--reason", help="Only what was refused for this reason.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="The most items to list; all are counted."
)
def refusals(partition: str | None, reason: str | None, limit: int) -> int:
    """List what Customer.io has refused and not accepted since.

    Each line is an event or a customer: its day, its masked id, and Customer.io's reason. The ledger's table refusals has each
    item as it was sent. What the rules refused is in the table rejects instead.

    \b
    Examples:
      python -m cio_pipeline refusals
      python -m cio_pipeline refusals --partition 2026-03-02

    \b
    Exit status:
      0    the refusals are listed, if there are any
      1    the ledger cannot be read
      2    a setting or an option is wrong
    """
    settings = _settings()
    from cio_pipeline.cli.refusals import list_refusals

    list_refusals(settings, partition, reason, limit)
    return 0


@cli.command()
def metrics() -> int:
    """Print how far the deliveries are, in Prometheus' text format.

    The metrics are the newest delivered day, its age and its counts, skipped days, refusals of Customer.io by reason, and each
    job's last run. For node_exporter's textfile collector, or to push: docs/deploy.md.

    \b
    Exit status:
      0    the metrics are printed
      1    the ledger or Dagster's storage cannot be read; nothing is printed
      2    a setting is wrong
    """
    settings = _settings()
    from cio_pipeline.cli.metrics import print_metrics

    print_metrics(settings)
    return 0


@cli.command()
@click.argument("who")
@days
@click.option(
    "--hash",
    "hashed",
    is_flag=True,
    help="Print the name of this person for the job explain_person in Dagster's UI.",
)
def explain(who: str, partition: str | None, first: str | None, last: str | None, hashed: bool) -> int:
    """Explain what happened to a person, and why.

    WHO is a distinct_id or an email. For each event of the person on these days it lists whether the event was sent, filtered,
    suppressed or refused, by which rule, to which customer of Customer.io it went, and whether Customer.io has acknowledged it;
    then each attribute with its value and when it was set. It calls neither service, and changes nothing.

    It prints ids, emails and values unmasked, since that is its purpose, and stores none of them.

    The default is the last 30 days. --from without --to goes up to yesterday, --to without --from begins 30 days ago.

    \b
    Examples:
      python -m cio_pipeline explain user-000017
      python -m cio_pipeline explain jane@example.com --from 2026-03-02 --to 2026-03-04
      python -m cio_pipeline explain user-000017 --hash

    \b
    Exit status:
      0    the person is explained, if there is anything
      1    the tables or the ledger cannot be read
      2    a setting, a day or an option is wrong
    """
    start, end = first_and_last(partition, first, last)
    settings = _settings()
    from cio_pipeline.cli.explain import explain_person, print_masked_name

    if hashed:
        print_masked_name(who)
    else:
        explain_person(settings, who, start or "30 days ago", end or "yesterday")
    return 0


@cli.command()
def ui() -> int:
    """Run Dagster's UI and daemon with your settings, until Ctrl-C.

    It prints the UI's address: http://127.0.0.1:3000, or the next free port. Dagster keeps its runs in DAGSTER_HOME or, without
    one, in the folder dagster in CIO_DATA_DIR.

    \b
    Exit status:
      0    it was ended by Ctrl-C
      1    Dagster ended by itself
      2    a setting is wrong
    """
    from cio_pipeline.cli.ui import ui as run_ui

    return run_ui()


@cli.command()
def demo() -> int:
    """Run three days from a local PostHog to a local Customer.io.

    It reads neither .env nor your settings, sends nothing anywhere else, and writes to data/demo only.

    \b
    Exit status:
      0    the days were delivered
      1    they were not; the last line says why
      130  Ctrl-C
    """
    from cio_pipeline.sandbox.demo import demo as run_demo

    return run_demo()


@cli.command()
def dev() -> int:
    """Run Dagster's UI on the sandbox, until Ctrl-C.

    The sandbox is a local PostHog and a local Customer.io. It reads neither .env nor your settings, sends nothing
    anywhere else, and writes to data/dev only.

    \b
    Exit status:
      0    it was ended by Ctrl-C
      1    Dagster ended by itself
    """
    from cio_pipeline.sandbox.dev import dev as run_dev

    return run_dev()


def main(arguments: list[str] | None = None) -> int:
    """Runs the command with these arguments (None: those of the process). Returns the exit status."""
    try:
        return int(cli.main(arguments, "python -m cio_pipeline", standalone_mode=False) or 0)
    except click.ClickException as wrong:
        wrong.show()
        return wrong.exit_code


def _dry_run(partition: str | None, first: str | None, last: str | None, chosen: dict[str, Any]) -> int:
    settings, start, end = _settings_and_days(partition, first, last)
    from cio_pipeline.cli.run import dry_run

    return dry_run(start, end, settings, chosen)


def _today(*other_options: object) -> int:
    if any(option is not None and option is not False for option in other_options):
        raise click.UsageError("--today cannot be combined with other options.")
    settings = _settings()
    from cio_pipeline.cli.run import run_today

    return run_today(settings)


def _settings() -> Settings:
    """Returns the settings. To be called before anything is imported that loads Dagster, which reads some of them."""
    from cio_pipeline.settings.load import load_settings

    return load_settings()


def _settings_and_days(partition: str | None, first: str | None, last: str | None) -> tuple[Settings, str, str]:
    start, end = first_and_last(partition, first, last)
    settings = _settings()
    from cio_pipeline.defs.partitions import DaysError

    if not start:
        raise DaysError("Name the days to run: --partition 2026-03-02, or --from 2026-03-02 --to 2026-03-04.")
    return settings, start, end or start
