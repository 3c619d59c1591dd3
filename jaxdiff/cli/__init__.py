"""The command `jaxdiff`: one file per group of commands; nothing here is needed to use the package from Python."""
