"""`python -m muaudit` is the command line."""

from muaudit.cli import main

main(prog_name="muaudit")
