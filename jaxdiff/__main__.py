"""`python -m jaxdiff` is the command `jaxdiff`."""

from .cli import main

main()
