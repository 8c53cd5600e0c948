"""`python -m ticketlab` is `ticketlab`."""

from ticketlab.cli.app import main

if __name__ == "__main__":
    main()
