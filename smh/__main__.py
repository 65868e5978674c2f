"""``python -m smh``: the command line, also where its executable is not on the path."""

from smh.cli import main

if __name__ == "__main__":
    main()
