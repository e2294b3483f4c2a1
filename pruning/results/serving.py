"""How what a job leaves for an engine is run there: lines for the model card."""

LEFT = {  # by runtime: what stands beside the checkpoint
    "llama_cpp": "model.gguf",
    "onnxruntime": "onnxruntime/",
    "openvino": "openvino/",
}
CODE = {
    "llama_cpp": """\
from llama_cpp import Llama
model = Llama("model.gguf")
print(model("The answer is", max_tokens=16)["choices"][0]["text"])""",
    "onnxruntime": """\
import onnxruntime
session = onnxruntime.InferenceSession("onnxruntime/model.onnx")
print([(each.name, each.shape) for each in session.get_inputs()])""",
    "openvino": """\
import openvino
model = openvino.Core().compile_model("openvino/openvino_model.xml", "CPU")
print(model.inputs)""",
}
GRAPH = (
    "A decoder's graph reads `input_ids`, the `positions` of which it gives logits, and keys and "
    "values of the tokens before, [batch groups tokens head]: of no tokens for a prompt. It gives "
    "them back with those of the new tokens. An encoder's reads `input_ids` and `attention_mask`."
)


def serving(runtime: str, label: str) -> str:
    """Say how the files for a runtime are run, as a section; nothing where there are none."""
    if runtime not in LEFT:
        return ""
    about = "`llama-server -m model.gguf` serves it." if runtime == "llama_cpp" else GRAPH
    return (
        f"## Serve\n\nThe job left `{LEFT[runtime]}` beside this directory, for {label}. There:"
        f"\n\n```python\n{CODE[runtime]}\n```\n\n{about}"
    )
