"""``python -m spa``."""

from spa.cli import main

main()
