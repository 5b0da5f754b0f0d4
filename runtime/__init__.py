"""The machine: devices, ranks, signals, memory, and guards for files of strangers."""
