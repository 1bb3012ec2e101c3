"""``python -m contourcast`` is ``contourcast``."""

from contourcast.cli import main

main()
