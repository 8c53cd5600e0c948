"""A federation from the command to its record: what is asked, the programs, rounds, controls."""
