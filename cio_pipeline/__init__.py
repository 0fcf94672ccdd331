"""PostHog events into Customer.io, as a Dagster code location."""

__version__ = "0.1.0"
"""The one place where the version stands: pyproject.toml, the wheel and `--version` have it from here."""
