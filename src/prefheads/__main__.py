"""`python -m prefheads`: the command line."""

from prefheads.cli.main import main

if __name__ == "__main__":
    main()
