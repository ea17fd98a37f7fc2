"""What every test shares: one thread, as a rank has, so that sums come out alike and forked ranks are safe."""

from __future__ import annotations

import torch

from tests.apptainer.fixtures import image_base, small_image, tiny_base, worker_image
from tests.testbed.fixtures import _testbed, testbed

__all__ = ["_testbed", "image_base", "small_image", "testbed", "tiny_base", "worker_image"]

torch.set_num_threads(1)
