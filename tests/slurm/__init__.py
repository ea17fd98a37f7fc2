"""A real Slurm on this machine, and the tests that run on it."""
