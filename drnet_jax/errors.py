"""The one exception that is meant for the person at the command line."""


class UserError(ValueError):
    """Something given from outside is wrong: a config value, a path, a data set, a checkpoint.

    The message says what was expected, what was received and what to do;
    the command line prints it without a traceback and exits with status 2.
    """
