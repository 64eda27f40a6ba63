"""`python -m selfplay` does what `selfplay` does."""

from selfplay.cli import main

main()
