"""The command `python -m data.keywords`."""

from data.keywords.making import main
from runtime.entry_point import run_entry_point

if __name__ == "__main__":
    run_entry_point(main)
