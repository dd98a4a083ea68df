"""The two ways a command may fail, so that the command line can print one sentence and choose the exit code."""


class UserError(Exception):
    """The call, a config or an input is wrong: one sentence that says what to change. Exit code 2."""


class WorkError(Exception):
    """The call was right but the work could not be finished (a full disk, too many bad samples). Exit code 1."""


class FullDiskError(WorkError):
    """No more can be written: to go on with other work would be in vain."""
