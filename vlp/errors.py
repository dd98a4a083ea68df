"""The errors that end a command with one sentence and an exit code."""


class UserError(Exception):
    """The call, a config or an input is wrong. The message is one sentence that says what to change. Exit code 2."""


class WorkError(Exception):
    """The call was right, but the work failed (a full disk, too many bad samples). Exit code 1."""


class FullDiskError(WorkError):
    """The disk is full, so that other work would fail as well."""
