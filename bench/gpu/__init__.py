"""The parts of `bench/gpu_check.sh`: what needs a GPU, measured and checked, as sections of one report."""
