"""A rank's state taken, written, read back: the side of checkpoints that has tensors in its hands."""
