"""Folding: fewer operators for the same results."""

import numpy as np

from drnet_jax.graphs.graph import Graph, Node


def fold(graph: Graph, results: set[str]) -> Graph:
    """The graph with what scales and shifts a convolution's channels taken into its weights.

    That is BatchNorm in evaluation. `results` are the values that are wanted.
    """
    uses, made = graph.uses(), {node.output: node for node in graph.nodes}
    folded, kept = Graph(), []
    folded.constants = dict(graph.constants)
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        convolution, by = _scaled(node, made, folded.constants)
        alone = convolution is not None and uses[convolution.output] == 1
        if alone and convolution.output not in results and node.output not in results:
            _take_in(convolution, node.operator, by, folded)
            renamed[node.output] = convolution.output
            uses[convolution.output] = uses[node.output]
        else:
            kept.append(node)
    folded.nodes = kept
    return folded


def _scaled(
    node: Node, made: dict[str, Node], constants: dict[str, np.ndarray]
) -> tuple[Node | None, np.ndarray | None]:
    """The convolution whose channels a node scales or shifts, and by what [C]; or None."""
    if node.operator not in ("Mul", "Add") or len(node.inputs) != 2:
        return None, None
    for x, by in (node.inputs, node.inputs[::-1]):
        value, convolution = constants.get(by), made.get(x)
        if value is None or convolution is None or convolution.operator != "Conv":
            continue
        channels = len(constants[convolution.inputs[1]])
        shape = (1,) * (4 - value.ndim) + value.shape
        if shape in ((1, channels, 1, 1), (1, 1, 1, 1)):
            return convolution, np.broadcast_to(value.reshape(-1), channels)
    return None, None


def _take_in(convolution: Node, operator: str, by: np.ndarray, graph: Graph) -> None:
    x, weights, *bias = convolution.inputs
    value = graph.constants[bias[0]] if bias else np.zeros(len(by), np.float32)
    if operator == "Add":
        convolution.inputs = [x, weights, graph.constant(value + by)]
        return
    kernel = graph.constants[weights] * by.reshape(-1, 1, 1, 1)
    convolution.inputs = [x, graph.constant(kernel)] + [graph.constant(value * by)] * bool(bias)
