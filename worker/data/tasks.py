"""What a minibatch of each task holds: names, shapes and dtypes of its tensors.

===============  ==============================================================  =============================
task             inputs                                                          targets
===============  ==============================================================  =============================
masked-lm        input_ids (b, s), segment_ids (b, s), attention_mask (b, s)     labels (b, s)
masked-lm-pairs  the same                                                        labels (b, s), order_labels (b,)
causal-lm        input_ids (b, s)                                                labels (b, s): the next token
translation      source_ids (b, s), source_mask (b, s), target_ids (b, s)        labels (b, s): the next target token
images           pixels (b, 3, h, w), float32, normalised                        labels (b,)
===============  ==============================================================  =============================

Ids and labels are int64, masks bool and true where a token is. IGNORED labels are not to be predicted.
"""

from __future__ import annotations

import torch

from worker.data.base import Signature, TensorSpec
from worker.spec.data import AnyData, ImagesSpec, SyntheticSpec
from worker.spec.model import Task


def signature(task: Task, data: AnyData) -> Signature:
    """What every minibatch of ``task`` looks like."""
    if task == "images":
        assert isinstance(data, ImagesSpec | SyntheticSpec)
        pixels = TensorSpec((data.minibatch_size, 3, data.image_size, data.image_size), torch.float32)
        return Signature({"pixels": pixels}, {"labels": TensorSpec((data.minibatch_size,), torch.int64)})
    assert not isinstance(data, ImagesSpec) and hasattr(data, "sequence_length")
    shape = (data.minibatch_size, data.sequence_length)
    ids, mask = TensorSpec(shape, torch.int64), TensorSpec(shape, torch.bool)
    if task == "causal-lm":
        return Signature({"input_ids": ids}, {"labels": ids}, data.varies)
    if task == "translation":
        return Signature({"source_ids": ids, "source_mask": mask, "target_ids": ids}, {"labels": ids})
    targets = {"labels": ids}
    if task == "masked-lm-pairs":
        targets["order_labels"] = TensorSpec(shape[:1], torch.int64)
    return Signature({"input_ids": ids, "segment_ids": ids, "attention_mask": mask}, targets, data.varies)
