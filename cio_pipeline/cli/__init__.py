"""The command line.

- `commands`: the commands, in their `group`, with the `options` that several share; `failures` is how a failed one ends;
- `run`: runs Dagster's jobs in this process, with `instance`; `summary` says at the end what was not delivered;
- `explain`, `refusals`, `metrics`: what these commands print;
- `ui`: Dagster's UI and daemon, as `processes`;
- `terminal`: one line at a time.
"""
