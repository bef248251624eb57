"""The version of this package, the single source."""

__version__ = "0.4.0"
