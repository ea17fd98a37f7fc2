"""Schedules as data: built by pure generators, walked by the simulator, executed by the runtime."""

from worker.schedule.action import Action as Action
from worker.schedule.action import Kind as Kind
from worker.schedule.action import brief as brief
from worker.schedule.action import picture as picture
from worker.schedule.generate import actions as actions
from worker.schedule.generate import num_warmup as num_warmup
