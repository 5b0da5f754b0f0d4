"""The tests mirror the rooms: `tests/<room>/`; what several of them share lies here."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
