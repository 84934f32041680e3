"""``python -m carryover``: the command line."""

from carryover.transfer.cli.main import main

if __name__ == "__main__":
    main()
