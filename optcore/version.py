"""Versions that results depend on."""

from importlib.metadata import PackageNotFoundError, version

ENGINE_VERSION = "6"
"""Raised when the same recipe would give other bytes or other numbers; part of every stage's key."""


def installed(package: str) -> str:
    """Version of an installed package, or `not installed`."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
