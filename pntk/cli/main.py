"""The entry point ``pntk``, which also works where its own dependencies are missing."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from pntk.cli.app import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("rich", "typer"):
            raise
        missing = f"the command line needs {package}, which is not installed"
        print(f'error: {missing}: install "pntk[cli]"', file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
