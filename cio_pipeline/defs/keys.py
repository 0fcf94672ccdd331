"""The assets' keys: all begin with `cio`, so that they do not clash with a team's own `events` and `customers`."""

import dagster as dg

GROUP = "customerio_sync"
"""Of all assets: where there is one group only, Dagster opens the graph drawn out, and else as closed boxes."""

OWNERS = ["team:data"]
TAGS = {"pipeline": "cio_pipeline"}
"""Of each asset. They are not settings: change them here."""

PREFIX = "cio"


def key(name: str) -> dg.AssetKey:
    """The key of the asset of this name."""
    return dg.AssetKey([PREFIX, name])
