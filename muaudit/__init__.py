"""Audits models that are claimed to have unlearned something.

>>> import muaudit
>>> report = muaudit.audit("audit.toml")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from muaudit.version import VERSION as __version__

if TYPE_CHECKING:
    from muaudit.runner import audit

__all__ = ["__version__", "audit"]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - module attributes are of any type
    """Imports the audit on first use, so that the command line starts at once."""
    if name == "audit":
        from muaudit.runner import audit

        return audit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
