"""A launch as a job of Slurm: the script, what the steps in the allocation are told, and what Slurm says of it."""
