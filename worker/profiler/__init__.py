"""Measures what layers cost and links carry, on the device at hand; knows nothing of plans."""

from worker.profiler.layers import measure as measure
from worker.profiler.links import measure_link as measure_link
