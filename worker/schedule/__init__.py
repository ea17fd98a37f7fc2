"""Schedules as data: built by pure generators, walked by the simulator, executed by the runtime."""

from worker.schedule.action import Action as Action
from worker.schedule.action import Kind as Kind
from worker.schedule.action import brief as brief
from worker.schedule.action import picture as picture
from worker.schedule.check import validate as validate
from worker.schedule.setting import Setting as Setting
from worker.schedule.setting import Times as Times
from worker.schedule.setting import num_warmup as num_warmup
from worker.schedule.table import SCHEDULES as SCHEDULES
from worker.schedule.table import actions as actions
from worker.schedule.table import build as build
from worker.schedule.table import find as find
from worker.schedule.torch_csv import from_csv as from_csv
from worker.schedule.torch_csv import to_csv as to_csv
from worker.schedule.versions import peak_activations as peak_activations
from worker.schedule.versions import peak_in_flight as peak_in_flight
from worker.schedule.versions import peak_versions as peak_versions
from worker.schedule.versions import versions as versions
