"""``python -m pipeline`` is ``foveate``."""

from pipeline.cli import main

main()
