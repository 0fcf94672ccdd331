"""The error of a setting."""

from __future__ import annotations

from cio_pipeline.errors import PipelineError


class SettingsError(PipelineError):
    """A setting is missing or wrong; the message is one sentence that names it, but never quotes a secret."""

    exit_status = 2
