"""Graph: ONNX operators as they are put together."""

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 10  # those of 2023 and 2024, which every runtime in use knows


@dataclasses.dataclass
class Node:
    """An operator with the one of its results that is used, the first."""

    operator: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]

    def proto(self) -> onnx.NodeProto:
        unused = [f"{self.output}_unused"] if self.operator == "TopK" else []
        return helper.make_node(
            self.operator, self.inputs, [self.output, *unused], **self.attributes
        )


class Graph:
    """Nodes in an order in which they can run, and the constants that they read."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, operator: str, *inputs: "str | np.ndarray", **attributes: Any) -> str:
        """Adds a node; arrays among the inputs become constants. Returns the name of its result."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(Node(operator, names, output, attributes))
        return output

    def constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def uses(self) -> Counter[str]:
        """How many nodes read each value."""
        return Counter(name for node in self.nodes for name in node.inputs)

    def model(
        self, image: tuple[str, tuple[int, ...]], outputs: dict[str, tuple[str, tuple[int, ...]]],
        about: str,
    ) -> onnx.ModelProto:
        """The graph as a file has it, for batches of any size.

        Args:
            image: name and shape of the input, uint8, without the batch.
            outputs: name of each -> (the value that it is, shape without the batch), float32.
            about: a line of what it computes.
        """
        nodes = [
            each.proto() for each in self.nodes
        ] + [helper.make_node("Identity", [value], [name]) for name, (value, _) in outputs.items()]
        used = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes, about,
            [_info(image[0], TensorProto.UINT8, image[1])],
            [_info(name, TensorProto.FLOAT, shape) for name, (_, shape) in outputs.items()],
            [numpy_helper.from_array(value, name)
             for name, value in self.constants.items() if name in used],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="drnet_jax",
        )
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model, full_check=True)
        return model


def _info(name: str, kind: int, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])
