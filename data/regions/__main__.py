"""The command `python -m data.regions`."""

from data.regions.building import main
from runtime.entry_point import run_entry_point

if __name__ == "__main__":
    run_entry_point(main)
