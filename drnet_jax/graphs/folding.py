"""Folding: fewer operators for the same results."""

import numpy as np

from drnet_jax.graphs.graph import Graph, Node


def fold(graph: Graph, results: set[str]) -> Graph:
    """The graph with what scales and shifts the channels of a convolution taken into its weights;
    of a product, with what scales them.

    That is BatchNorm in evaluation. `results` are the values that are wanted.
    """
    uses, made = graph.uses(), {node.output: node for node in graph.nodes}
    folded, kept = Graph(), []
    folded.constants = dict(graph.constants)
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        layer, by = _scaled(node, made, folded.constants)
        alone = layer is not None and uses[layer.output] == 1
        if alone and layer.output not in results and node.output not in results:
            _take_in(layer, node.operator, by, folded)
            renamed[node.output] = layer.output
            uses[layer.output] = uses[node.output]
        else:
            kept.append(node)
    folded.nodes = kept
    return folded


TAKEN_IN = {"Conv": ("Mul", "Add"), "MatMul": ("Mul",)}  # of what follows, by each layer


def _scaled(
    node: Node, made: dict[str, Node], constants: dict[str, np.ndarray]
) -> tuple[Node | None, np.ndarray | None]:
    """The layer whose channels a node scales or shifts, and by what [C]; or None."""
    if len(node.inputs) != 2:
        return None, None
    for x, by in (node.inputs, node.inputs[::-1]):
        value, layer = constants.get(by), made.get(x)
        if value is None or layer is None or node.operator not in TAKEN_IN.get(layer.operator, ()):
            continue
        weights = constants.get(layer.inputs[1])
        if weights is None:
            continue
        shape = (1,) * (4 - value.ndim) + value.shape
        convolves = layer.operator == "Conv"
        channels = weights.shape[0 if convolves else -1]
        if shape in ((1, channels, 1, 1) if convolves else (1, 1, 1, channels), (1, 1, 1, 1)):
            return layer, np.broadcast_to(value.reshape(-1), channels)
    return None, None


def _take_in(layer: Node, operator: str, by: np.ndarray, graph: Graph) -> None:
    x, weights, *bias = layer.inputs
    if operator == "Add":
        value = graph.constants[bias[0]] if bias else np.zeros(len(by), np.float32)
        layer.inputs = [x, weights, graph.constant(value + by)]
        return
    along = (-1, 1, 1, 1) if layer.operator == "Conv" else -1
    scaled = [graph.constants[weights] * by.reshape(along)]
    layer.inputs = [x, *map(graph.constant, scaled + [graph.constants[each] * by for each in bias])]
