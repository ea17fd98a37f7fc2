"""What every test shares: one thread, as a rank has, so that sums come out alike and forked ranks are safe."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
