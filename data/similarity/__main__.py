"""The command `python -m data.similarity`."""

from data.similarity.showing import main
from runtime.entry_point import run_entry_point

if __name__ == "__main__":
    run_entry_point(main)
