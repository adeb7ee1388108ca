"""State dicts: flax variables as those of `drnet_jax.benchmark.torch_baseline.ResNet`."""

import numpy as np
import torch
from flax.traverse_util import flatten_dict

from drnet_jax.benchmark.torch_baseline import ResNet

NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias",
         "mean": "running_mean", "var": "running_var"}


def to_state_dict(tree) -> dict[str, torch.Tensor]:
    """A tree of flax parameters or batch statistics, under PyTorch's names and layouts."""
    state = {}
    for path, leaf in flatten_dict(tree).items():
        leaf = np.asarray(leaf)
        # Convolutions: HWIO -> OIHW; dense: IO -> OI.
        leaf = leaf.transpose({4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim])
        state[".".join((*path[:-1], NAMES[path[-1]]))] = torch.from_numpy(leaf.copy())
    return state


def torch_twin(variables, name: str, classes: int, channels: int) -> ResNet:
    """The PyTorch network that computes what the flax one does with `variables`."""
    net = ResNet(name, classes, channels).to(memory_format=torch.channels_last)
    state = to_state_dict(variables["params"]) | to_state_dict(variables["batch_stats"])
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    return net


def to_torch(images: np.ndarray) -> torch.Tensor:
    """[B, H, W, 3] -> [B, 3, H, W], channels last in memory."""
    return torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)
