"""What the local PostHog's endpoints answer."""

from __future__ import annotations

from dataclasses import dataclass, field


class Refused(Exception):
    """An answer other than 200, in the shape of PostHog's errors."""

    def __init__(self, status: int, kind: str, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"type": kind, "code": code, "detail": detail, "attr": None}


@dataclass
class Answer:
    """What goes back over HTTP."""

    content: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
