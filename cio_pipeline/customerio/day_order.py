"""The order in which a run delivers its days: one that Customer.io's answers leave undecided is tried once more at the end."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from cio_pipeline.customerio.sender import Undecided

logger = logging.getLogger(__name__)

Done = TypeVar("Done")


def deliver_each(days: Iterable[str], deliver: Callable[[str], Done]) -> Iterator[tuple[str, Done, bool]]:
    """Calls `deliver` for each day, and yields the day when it is done, with the result, and whether more days follow.

    A day that raises `Undecided` is delivered once more after all others. So it does not hold them up, and if something of the
    same kind was accepted of them, that settles it. Raises `Undecided` if nothing is left that could settle it.
    """
    todo, postponed = deque(days), set[str]()
    while todo:
        day = todo.popleft()
        try:
            done = deliver(day)
        except Undecided:
            if day in postponed or not todo:
                raise
            postponed.add(day)
            todo.append(day)
            logger.warning(
                "%s: no answer shows whether an item or Customer.io is at fault. The day is tried again after the others.", day
            )
        else:
            yield day, done, bool(todo)
