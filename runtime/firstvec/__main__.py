"""``python -m firstvec``."""

from firstvec.commands.main import main

if __name__ == "__main__":
    main()
