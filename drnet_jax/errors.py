"""Errors: the exception that is meant for the person at the command line, and first lines."""

import errno

# What to do where something could not be written.
REMEDIES = {
    errno.ENOSPC: "make room", errno.EDQUOT: "make room", errno.EFBIG: "allow larger files",
    errno.EROFS: "make it writable", errno.EACCES: "make it writable",
}


class UserError(ValueError):
    """Something given from outside is wrong: a config value, a path, a data set, a checkpoint.

    The message says what was expected, what was received and what to do;
    the command line prints it without a traceback and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """The gist of an error of a library, whose messages can be long, or empty."""
    return (str(error) or repr(error)).splitlines()[0]


class Stopped(Exception):
    """A run was asked to stop, has saved what it has done, and ends; `status` is the process's."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status
