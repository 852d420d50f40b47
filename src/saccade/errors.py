"""The exception that means: the user can mend this. Two kinds of it are met by more than a message."""


class SaccadeError(Exception):
    """A problem with what was asked or given: one line that says what, where and what to do.

    The command line prints it without a traceback and exits with 1. Anything else that escapes is a bug of ours. A line
    often quotes what a file or a path holds, so line breaks, terminal escapes and lone surrogates in it become visible.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class OutOfMemoryError(SaccadeError):
    """A GPU has not the memory that was asked for; less of what is kept there may mend it."""


class EngineError(SaccadeError):
    """An engine does not load or run, or gives numbers that are none: its own doing, and not the machine's."""


def one_line(text: str) -> str:
    """Return text with line breaks, terminal escapes and lone surrogates made visible."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)


def raise_interrupt(error: BaseException) -> None:
    """Raise the interrupt that made an import fail, if one did: a compiled module turns what reaches it into ImportError."""
    if isinstance(error.__cause__, KeyboardInterrupt):
        raise error.__cause__
