"""How many random examples a property is tested with: as a rule few, and always the same ones.

`make nightly` sets HYPOTHESIS_TIMES: so many times as many, and other ones each time.
"""

from __future__ import annotations

import os

from hypothesis import Phase, settings

TIMES = int(os.environ.get("HYPOTHESIS_TIMES", "1"))

settings.register_profile("few", max_examples=50, derandomize=True, deadline=None)
settings.register_profile("nightly", max_examples=100 * TIMES, deadline=None, print_blob=True)
settings.load_profile("few" if TIMES == 1 else "nightly")


def examples(count: int) -> settings:
    """For a slow property: so many examples instead of 50, and a failing one is not made smaller, which takes minutes."""
    return settings(max_examples=count * TIMES, phases=[Phase.explicit, Phase.reuse, Phase.generate])
