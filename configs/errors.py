"""The one error of this package: the configuration cannot be used as it is written."""

from __future__ import annotations


class ConfigError(ValueError):
    """A job cannot be made from a file and its overrides (exit 2). The message has one line per problem;
    each names the file or override, the key path, the value, and what is allowed there."""
