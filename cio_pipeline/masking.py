"""Text without anybody's email address, for logs and messages."""

from __future__ import annotations

import re

EMAIL = re.compile(r"([^\s@\"'<>()\[\],;:/=])[^\s@\"'<>()\[\],;:/=]*@([^\s@.])[^\s@.]*(?:\.[\w-]+)*\.([\w-]+)")


def mask(text: str) -> str:
    """`jane@mail.example.com` -> `j***@m***.com`, wherever it stands in the text; any other `@` hides what is around it."""
    masked = EMAIL.sub(r"\1***@\2***.\3", text)
    return re.sub(r"[^\s*]+@[^\s*]+", "***@***", masked)
