"""`runtime=openvino`: OpenVINO on this machine's CPU."""

import errno
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pruning.runtimes.graph_runtime import GraphRuntime
from pruning.runtimes.session import Arrays, Session, quietly

if TYPE_CHECKING:
    from pruning.runtimes.graph import Graph

FILE = "openvino_model.xml"


class Precision(StrEnum):
    """What a model is computed in."""

    auto = "auto"  # what OpenVINO takes: bfloat16 where the CPU is fast in it, else float32
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"  # weights by nncf, a scale per row; computed as auto says


@dataclass
class OpenVINO(GraphRuntime):
    """The graph of a model, compiled by OpenVINO for this CPU."""

    package: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"

    name: str = "openvino"
    precision: Precision = Precision.auto  # of the weights and of the arithmetic

    def write(self, graph: "Graph", directory: Path) -> None:
        import openvino

        with quietly():
            model = openvino.convert_model(graph.program)
        for ports, names in ((model.inputs, graph.inputs), (model.outputs, graph.outputs)):
            for port, name in zip(ports, names, strict=True):
                port.get_tensor().set_names({name})
        if self.precision is Precision.int8:
            with quietly():
                import nncf

                model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        try:
            openvino.save_model(model, directory / FILE, compress_to_fp16=False)
        except RuntimeError as error:  # it does not say that a disk is full
            raise OSError(errno.EIO, str(error), str(directory / FILE)) from error

    def open(self, directory: Path) -> Session:
        import openvino
        import torch

        hints: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        if self.precision in (Precision.float32, Precision.bfloat16):
            short = {"float32": "f32", "bfloat16": "bf16"}
            hints["INFERENCE_PRECISION_HINT"] = short[self.precision]
        compiled = openvino.Core().compile_model(directory / FILE, "CPU", hints)
        request = compiled.create_infer_request()

        def run(arrays: Arrays) -> list[Any]:
            results = request.infer(arrays, share_inputs=True, share_outputs=True)
            return [*results.values()]

        names = ([port.get_any_name() for port in p] for p in (compiled.inputs, compiled.outputs))
        return Session(run, *names)
