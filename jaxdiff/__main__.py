"""`python -m jaxdiff` is the command `jaxdiff`."""

from .cli.main import main

if __name__ == "__main__":
    main()
