"""Files of an export: written whole or not at all, and read only if nothing has changed them.

    manifest.json         what the model is: classes, options, costs, policies, checksums
    weights.safetensors   all variables, float32: from these the two forms below can be made anew
    NETWORK.onnx          for other runtimes: the predictor, and the classifier at each resolution
    NETWORK.stablehlo     for JAX, on CPUs, CUDA and TPUs, for six months of its releases
    predict.py            predicts with these files, without this package
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load, save

from drnet_jax import __version__, dial
from drnet_jax.bundle import predict
from drnet_jax.checkpoints.meta import Meta
from drnet_jax.config import Config
from drnet_jax.cost import Costs
from drnet_jax.dial import Dials, Policy
from drnet_jax.drnet import PREDICTOR, DRNet, Tree
from drnet_jax.errors import UserError
from drnet_jax.graphs import networks
from drnet_jax.graphs.stablehlo import to_stablehlo
from drnet_jax.resolutions import only

VERSION = 1  # of the layout
WEIGHTS = "weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Contents:
    """All that an export says."""

    meta: Meta
    classes: tuple[str, ...]
    variables: tuple[Tree, Tree]  # params and batch_stats, float32
    dials: Dials
    policy: Policy  # by which predict.py works unless it is told another


def is_bundle(path: str) -> bool:
    """Whether a path is that of an export."""
    return (Path(path).expanduser() / predict.MANIFEST).is_file()


def traced_config(config: Config) -> Config:
    """A model's config as exports trace it: in float32, whatever it was trained in."""
    return dataclasses.replace(config, dtype="float32")


def write(contents: Contents, costs: Costs, directory: Path, forms: Iterable[str]) -> None:
    """Writes an export into a new directory; forms are of "stablehlo" and "onnx"."""
    files = {
        WEIGHTS: save(_flat(contents.variables)),
        "predict.py": Path(predict.__file__).read_bytes(),
    }
    named: dict[str, dict[str, Any]] = {}
    for form in forms:
        for network, data, extra in _FORMS[form](contents):
            files[f"{network}.{form}"] = data
            named.setdefault(network, {})[form] = f"{network}.{form}"
            named[network] |= extra
    _write_all(directory, files, _manifest(contents, costs, named))


def refresh(directory: Path) -> None:
    """Traces the StableHLO of an export anew, for the JAX that is installed now.

    Raises:
        UserError: if a file is not what it was.
    """
    contents, manifest = read(str(directory))
    try:
        files = {name: predict.checked(directory, name, manifest) for name in manifest["files"]}
    except predict.Damaged as error:
        raise UserError(str(error)) from error
    for network, data, extra in _stablehlo(contents):
        files[f"{network}.stablehlo"] = data
        manifest["networks"].setdefault(network, {}).update(extra, stablehlo=f"{network}.stablehlo")
    _write_all(directory, files, manifest | {"jax": jax.__version__})


def _write_all(directory: Path, files: Mapping[str, bytes], manifest: dict[str, Any]) -> None:
    """Beside its place first, so that nobody meets a part of it."""
    manifest = manifest | {"files": {name: predict.digest(data) for name, data in files.items()}}
    text = json.dumps(
        manifest | {"checksum": predict.digest(predict.as_text(manifest).encode())}, indent=2
    )
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, data in {**files, predict.MANIFEST: (text + "\n").encode()}.items():
        (partial / name).write_bytes(data)
    if directory.exists():
        shutil.rmtree(directory)
    partial.rename(directory)


def _manifest(
    contents: Contents, costs: Costs, named: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    meta = contents.meta
    return {
        "format": VERSION, "drnet_jax": __version__, "jax": jax.__version__,
        "classes": list(contents.classes), "options": list(costs.options),
        "charged": [float(each) for each in costs.charged],
        "multiply_adds": {"classifier": list(costs.classifier), "predictor": costs.predictor},
        "policy": dial.policy_to_json(contents.policy),
        "dials": dial.to_json(contents.dials),
        "preprocessing": meta.preprocessing, "networks": named, "checkpoint": meta.to_json(),
    }


def read(path: str) -> tuple[Contents, dict[str, Any]]:
    """What an export holds, and its manifest; raises UserError if a file is not what it was."""
    directory = Path(path).expanduser()
    try:
        manifest = predict.read_manifest(directory)
        if manifest["format"] != VERSION:
            raise UserError(
                f"{path}: expected an export of layout {VERSION}, received one of "
                f"{manifest['format']}; it was made by drnet_jax {manifest['drnet_jax']}"
            )
        weights = predict.checked(directory, WEIGHTS, manifest)
        for name in manifest["files"]:  # one after the other: together they are large
            if name != WEIGHTS:
                predict.checked(directory, name, manifest)
    except predict.Damaged as error:
        raise UserError(str(error)) from error
    meta, classes = Meta.from_json(manifest["checkpoint"], path), tuple(manifest["classes"])
    drnet = DRNet.from_config(meta.config, len(classes))
    like = _named(*jax.eval_shape(drnet.init, jax.random.key(0)))
    tree = _nested(load(weights), like)
    return Contents(
        meta=meta, classes=classes, variables=(tree["params"], tree["batch_stats"]),
        dials=dial.from_json(manifest["dials"]),
        policy=dial.policy_from_json(manifest["policy"]),
    ), manifest


def _flat(variables: tuple[Tree, Tree]) -> dict[str, np.ndarray]:
    """Arrays by name, such as "params/shared/stem/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(_named(*variables))
    return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def _named(params: Tree, batch_stats: Tree) -> dict[str, Tree]:
    return {"params": params, "batch_stats": batch_stats}


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(key.key for key in path)


def _nested(flat: Mapping[str, Any], like: Any) -> Any:
    """The inverse of `_flat`, of a tree `_named` like the one given, which may have empty parts."""
    return jax.tree_util.tree_map_with_path(lambda path, _: flat[_name(path)], like)


Made = Iterable[tuple[str, bytes, dict[str, Any]]]  # of each network its file, and what to know


def _networks(drnet: DRNet) -> dict[str, tuple[Callable[..., networks.Network], str | None]]:
    """By name: what makes the function of params and batch_stats, and the key of its norms."""
    return {PREDICTOR: (lambda *tree: networks.predictor(drnet, *tree), None)} | {
        str(size): (lambda *tree, index=index: networks.classifier(drnet, index, *tree), key)
        for index, (size, key) in enumerate(zip(drnet.resolutions, drnet.norm_keys, strict=True))
    }


def _parts(contents: Contents) -> Iterable[tuple[str, Callable[..., networks.Network], Any]]:
    """Of each network its name, what makes its function, and the variables that it needs."""
    drnet = drnet_of(contents)
    for name, (make, key) in _networks(drnet).items():
        yield name, make, tuple(
            {PREDICTOR: tree[PREDICTOR]} if key is None else only(tree, key)
            for tree in contents.variables
        )


def drnet_of(contents: Contents) -> DRNet:
    """The networks of an export."""
    return DRNet.from_config(traced_config(contents.meta.config), len(contents.classes))


def _shape(contents: Contents) -> tuple[int, int, int]:
    base = contents.meta.resolutions[0]
    return base, base, 3


def _onnx(contents: Contents) -> Made:
    from drnet_jax.graphs.onnx import to_onnx  # onnx is of the extra `runtimes`

    for name, make, variables in _parts(contents):
        graph = to_onnx(make(*variables), _shape(contents), f"{name}, {__version__}")
        yield name, graph.SerializeToString(), {}


def _stablehlo(contents: Contents) -> Made:
    for name, make, variables in _parts(contents):
        flat, like = _flat(variables), _named(*variables)

        def function(
            flat: dict[str, jax.Array], images: jax.Array, make=make, like=like
        ) -> dict[str, Any]:
            tree = _nested(flat, like)
            return make(tree["params"], tree["batch_stats"])(images)

        yield name, to_stablehlo(function, flat, _shape(contents)), {"variables": sorted(flat)}


_FORMS: dict[str, Callable[[Contents], Made]] = {"stablehlo": _stablehlo, "onnx": _onnx}
FORMS = tuple(_FORMS)
