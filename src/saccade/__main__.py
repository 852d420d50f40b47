"""The command `saccade`, and `python -m saccade`: Ctrl-C ends it in one line from its first import on."""
import sys

from saccade.cli import interrupts


def main() -> int:
    """Import the command line and run it."""
    interrupts.end_at_once()
    from saccade.cli.main import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
