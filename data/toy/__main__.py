"""The command `python -m data.toy`."""

import sys

from data.toy.making import main

if __name__ == "__main__":
    sys.exit(main())
