"""The timed spans of a run's ranks: read, put on one time line, summed up, written for trace viewers."""
