"""The sensor that sends alerts."""
