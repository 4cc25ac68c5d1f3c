"""Errors that a user can mend: each says what is wrong, why it matters and how to mend it."""

import errno
from pathlib import Path
from typing import Self


class MuauditError(Exception):
    """An error that the user can mend; shown as one line, never as a traceback.

    Attributes:
        exit_code: What the command line exits with.
    """

    exit_code = 2


class UsageError(MuauditError):
    """A configuration, a task file or an argument that cannot be used (exit code 2)."""


class ModelError(UsageError):
    """A model that cannot be opened, or that returns what no model should, such as NaN (exit code 2)."""


class VerificationError(MuauditError):
    """A signature, an envelope or a model file that is not what was signed (exit code 4)."""

    exit_code = 4


class EnvironmentFault(MuauditError):
    """A missing extra, a missing device or too little memory (exit code 5)."""

    exit_code = 5


class ServerFault(EnvironmentFault):
    """A server that fails for good, or may not be asked any more; it ends the audit, and what it answered is kept."""


class StorageFault(EnvironmentFault):
    """A disk that is full or a folder that cannot be written; it ends the audit, and what was stored before is kept."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> Self:
        """The fault that an error of the operating system means for a file that was to be written.

        Args:
            path: The file.
            error: What the operating system said.

        Returns:
            The fault, to be raised.
        """
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        mend = "make room" if full else "see that the folder exists and may be written, or choose another"
        return cls(
            f"{path}: cannot be written ({error.strerror or type(error).__name__}); {mend}, and run the same command again: "
            "what was stored before is kept"
        )


class NotApplicable(MuauditError):
    """An attack that has nothing to work on in this audit; its finding is `skipped` with this reason."""
