"""PostHog events into Customer.io, as a Dagster code location."""

__version__ = "0.1.0"
"""The version, which pyproject.toml, the wheel and `--version` take from here."""
