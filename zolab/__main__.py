"""`python -m zolab`: the command line where no script was installed."""

from zolab.cli import main

if __name__ == "__main__":
    main()
