"""The group of all commands, and what happens when one of them fails or is interrupted."""

from __future__ import annotations

import click

from cio_pipeline.cli.failures import sentence_and_status
from cio_pipeline.cli.terminal import complain

INTERRUPTED = 130
"""The exit status after Ctrl-C, as in shells."""

REST = "Interrupted: what Customer.io has acknowledged is kept, and a rerun sends the rest."
STOPPED = {"run": REST, "redeliver": REST, "dry-run": "Interrupted: nothing was sent."}
"""What these commands print after Ctrl-C; the others print only that they were interrupted."""


class Commands(click.Group):
    """The group of all commands. A command that fails ends with one sentence and an exit status, never with a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Returns the commands in the order in which they are defined."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> None:
        """Runs the named command, and exits with its status."""
        try:
            ctx.exit(super().invoke(ctx))
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except KeyboardInterrupt:
            complain(STOPPED.get(str(ctx.invoked_subcommand), "Interrupted."))
            ctx.exit(INTERRUPTED)
        except Exception as failure:
            text, status = sentence_and_status(failure)
            complain(text)
            ctx.exit(status)
