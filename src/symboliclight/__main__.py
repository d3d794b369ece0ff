"""`python -m symboliclight`, and `torchrun -m symboliclight train` for several processes."""

import sys

from symboliclight.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
