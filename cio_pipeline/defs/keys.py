"""The assets' keys: all begin with `cio`, so that they do not clash with a team's own `events` and `customers`."""

import dagster as dg

GROUP = "customerio_sync"

OWNERS = ["team:data"]
TAGS = {"pipeline": "cio_pipeline"}
"""Of each asset. They are not settings: change them here."""

REPORTS = "customerio_reports"
"""The group of the assets to which jobs that send nothing write their reports; shown apart from the others in the graph."""

PREFIX = "cio"


def key(name: str) -> dg.AssetKey:
    """The key of the asset of this name."""
    return dg.AssetKey([PREFIX, name])
