"""`runtime=onnxruntime`: ONNX Runtime on this machine's CPU."""

import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pruning.runtimes.graph_runtime import GraphRuntime
from pruning.runtimes.session import Arrays, Session, quietly

if TYPE_CHECKING:
    from pruning.runtimes.graph import Graph

FILE = "model.onnx"
OPSET = 24  # attention is one operation; in 23 rotations refuse batches


class Precision(StrEnum):
    """What a model is computed in."""

    float32 = "float32"
    int8 = "int8"  # of weights and, as it runs, of activations: ONNX Runtime's dynamic quantisation


@dataclass
class OnnxRuntime(GraphRuntime):
    """The graph of a model, optimised and run by ONNX Runtime."""

    package: ClassVar[str] = "onnxruntime"
    extra: ClassVar[str] = "onnx"

    name: str = "onnxruntime"
    precision: Precision = Precision.float32  # of the weights and of the arithmetic
    # threads wait for work in a busy loop: a session alone is faster then, and all that runs
    # beside it is slower
    spinning: bool = False

    def write(self, graph: "Graph", directory: Path) -> None:
        import torch

        with quietly():
            program = torch.onnx.export(
                graph.program,
                input_names=graph.inputs,
                output_names=graph.outputs,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        if self.precision is Precision.float32:
            program.save(directory / FILE, external_data=True)
            return
        with tempfile.TemporaryDirectory(dir=directory) as whole:
            program.save(Path(whole) / FILE, external_data=True)
            quantise(Path(whole) / FILE, directory / FILE)

    def open(self, directory: Path) -> Session:
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(
                f"session.{pool}.allow_spinning", str(int(self.spinning))
            )
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            directory / FILE, options, providers=["CPUExecutionProvider"]
        )

        def run(arrays: Arrays) -> list[Any]:
            return [*session.run(None, arrays)]

        names = ([one.name for one in p] for p in (session.get_inputs(), session.get_outputs()))
        return Session(run, *names)


def quantise(whole: Path, smaller: Path) -> None:
    """Write a graph in which the weights of products are int8, with a scale per column."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # not Attention, which it takes for an operation of older graphs
    options = {"per_channel": True, "op_types_to_quantize": ["MatMul", "Gemm", "Gather"]}
    with quietly():
        quantize_dynamic(
            whole, smaller, weight_type=QuantType.QInt8, use_external_data_format=True, **options
        )
