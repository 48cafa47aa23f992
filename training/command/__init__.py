"""The command line of training: one file per subcommand; `python -m training --help` lists them."""
