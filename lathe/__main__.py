"""`python -m lathe`: the command line."""

from lathe.cli import app

app()
