"""Errors a person can act on: one line that names the file or the flag."""


class CurateError(Exception):
    """The run cannot go on; the message says what happened and what to do."""


class UsageError(CurateError):
    """The command line is wrong; the message names the flag."""


class SourceChangedError(CurateError):
    """A source tar is not what it was when it was read, so the dataset would not be what its records say."""
