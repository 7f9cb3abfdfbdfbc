"""`python -m soarflow` is the command, and what is installed as `soarflow`."""

import sys


def main() -> int:
    """The command; Ctrl-C while it is still being imported ends it in words too."""
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt:
        print("soarflow: interrupted.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
