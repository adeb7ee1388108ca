"""Check: that an export answers as the model that it was made of, on real images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drnet_jax.bundle import predict
from drnet_jax.drnet import PREDICTOR
from drnet_jax.errors import UserError
from drnet_jax.inference.engine import Engine

TOLERANCE = 1e-5  # of a probability
RUNTIMES = {"onnx": "onnxruntime", "stablehlo": "jax"}  # that run each form


def worst(directory: Path, form: str, engine: Engine, images: np.ndarray) -> float:
    """By how much probabilities differ at most, over all networks of an export.

    Args:
        directory: of the export.
        form: of its networks, "onnx" or "stablehlo".
        engine: of the model, in float32.
        images: uint8 [N, H, W, 3] at the base size.
    """
    found = predict.Bundle(directory, RUNTIMES[form])
    batch, count = engine.upload(images), len(images)
    scores, own = engine.predict(batch)
    expected = {PREDICTOR: {"scores": scores} | ({} if own is None else {"log_p": own})} | {
        str(size): {"log_p": engine.classify(index, batch)}
        for index, size in enumerate(engine.drnet.resolutions)
    }
    differences = [0.0]
    for network, results in expected.items():
        said = found.run(network, images)
        for name, values in results.items():
            ours, theirs = (_probability(name, np.asarray(each)[:count]) for each in (
                values, said[name]
            ))
            differences.append(float(np.abs(ours - theirs).max()))
    return max(differences)


def _probability(name: str, values: np.ndarray) -> np.ndarray:
    # Scores are probabilities, or logarithms of them: of both a difference is told as it is.
    return np.exp(values) if name == "log_p" else values


def check(directory: Path, forms: Sequence[str], engine: Engine, images: np.ndarray) -> list[str]:
    """Lines that tell how exact each form is.

    Raises:
        UserError: if one differs by more than TOLERANCE.
    """
    told = []
    for form in forms:
        found = worst(directory, form, engine, images)
        if not found <= TOLERANCE:
            raise UserError(
                f"{directory}: expected {form} to answer as the checkpoint, within {TOLERANCE:g}, "
                f"on {len(images)} images; received a difference of {found:.2g}; do not use it"
            )
        told.append(f"{form}: probabilities differ by {found:.1g} at most, on {len(images)} images")
    return told
