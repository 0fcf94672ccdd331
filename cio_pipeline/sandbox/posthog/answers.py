"""The answers of the local PostHog's endpoints."""

from __future__ import annotations

from dataclasses import dataclass, field


class Refused(Exception):
    """An error answer, in the format of PostHog's."""

    def __init__(self, status: int, kind: str, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"type": kind, "code": code, "detail": detail, "attr": None}


@dataclass
class Answer:
    """An HTTP answer."""

    content: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
