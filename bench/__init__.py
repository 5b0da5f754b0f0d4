"""What measures speed, memory, and how much the trainings and the parsers withstand."""
