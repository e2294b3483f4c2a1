"""Models as engines run them: the answers are those of transformers, whatever was removed."""

import pytest
import torch

from pruning.models.shrink import shrink_
from pruning.models.sites import Kind, sites
from pruning.runtimes.graph_runtime import GraphRuntime
from pruning.runtimes.onnxruntime import OnnxRuntime
from pruning.runtimes.onnxruntime import Precision as OnnxPrecision
from pruning.runtimes.openvino import OpenVINO
from pruning.runtimes.openvino import Precision as OpenVINOPrecision
from tests.helpers.allocations import mixed
from tests.helpers.families import EVERY

pytestmark = pytest.mark.job

EXACT: list[GraphRuntime] = [
    OnnxRuntime(),
    OpenVINO(precision=OpenVINOPrecision.float32),
]
CLOSE: list[GraphRuntime] = [
    OnnxRuntime(precision=OnnxPrecision.int8),
    OpenVINO(precision=OpenVINOPrecision.int8),
]


def skip_without(runtime: GraphRuntime) -> None:
    pytest.importorskip(runtime.package)


def pruned(family: str):
    """Remove KV groups, heads, channels, a whole attention, a whole FFN, and one whole block."""
    model = EVERY[family]()
    allocation = mixed(model)
    for site in sites(model):
        if site.block == 1 and site.kind is Kind.FFN:
            allocation[site] = torch.zeros(site.units, dtype=torch.bool)
    return shrink_(model, allocation).eval()


def tokens(batch: int, count: int) -> torch.Tensor:
    return torch.randint(3, 120, (batch, count), generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore")  # of exporters
@torch.no_grad()
@pytest.mark.parametrize("family", list(EVERY))
@pytest.mark.parametrize("runtime", EXACT, ids=lambda runtime: runtime.name)
def test_an_engine_gives_the_logits_of_transformers(runtime, family):
    skip_without(runtime)
    model, ids = pruned(family), tokens(3, 11)
    mine, theirs = runtime.served(model)(input_ids=ids), model(input_ids=ids)
    for name in ("logits", "start_logits", "end_logits"):
        if (expected := getattr(theirs, name, None)) is not None:
            torch.testing.assert_close(getattr(mine, name), expected, rtol=1e-4, atol=1e-4)
