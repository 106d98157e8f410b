"""``python -m pntk`` is the command ``pntk``."""

from pntk.cli.main import main

if __name__ == "__main__":
    main()
