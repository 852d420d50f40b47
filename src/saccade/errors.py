"""The one exception that means: the user can mend this."""


class SaccadeError(Exception):
    """A problem with what was asked or given: one line that says what, where and what to do.

    The command line prints it without a traceback and exits with 1. Anything else that escapes is a bug of ours.
    """
