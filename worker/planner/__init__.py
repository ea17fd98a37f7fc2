"""Solves on numbers: which layers run where. Knows nothing of tensors."""

from worker.planner.partition import balance as balance
from worker.planner.plan import make_plan as make_plan
