"""`python -m chestx_cli` is `chestx`."""

from chestx_cli.cli.main import main

main()
