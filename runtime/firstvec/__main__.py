"""``python -m firstvec``: the same as the ``firstvec`` command."""

from firstvec.cli import main

main()
