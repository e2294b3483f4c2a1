"""Work that every model does in its own phases."""

import pytest
from transformers import PreTrainedModel

from pruning.models.sites import architecture
from pruning.runtimes.workload import Phase, Workload


def work_in(model: PreTrainedModel, phase: str) -> Workload:
    """Return 2 x 9 tokens of work: decode, or with `auto` what the model does by itself.

    A test of what an encoder does not do is skipped.
    """
    encoder = architecture(model).encoder
    if phase == "auto":
        return Workload(Phase.encode if encoder else Phase.prefill, 2, 9)
    if encoder:
        pytest.skip("an encoder does not decode")
    return Workload(Phase.decode, 2, 9)
