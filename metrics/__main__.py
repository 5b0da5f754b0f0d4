"""The command `python -m metrics`."""

from reports.significance import main
from runtime.entry_point import run_entry_point

if __name__ == "__main__":
    run_entry_point(main)
