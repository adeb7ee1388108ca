"""Predictions of an exported model, with nothing of drnet_jax: python predict.py IMAGES...

Needs numpy and Pillow, and of the networks' two forms either `pip install onnxruntime` or
`pip install 'jax!=0.10.2' flatbuffers`. Every file is checked against its checksum in manifest.json
before it is read. From Python: `Bundle("DIR").predict(images)`, images uint8 [H, W, 3].
"""

import argparse
import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MANIFEST = "manifest.json"
RUNTIMES = ("onnxruntime", "jax")
WRONG = "0.10.2"  # the jax that gives wrong sums on CPUs, and says nothing


class Unusable(Exception):
    """What is to run the networks is missing, or known to be wrong."""


class Damaged(Exception):
    """A file is not what it was when the model was exported."""


class Bundle:
    """An exported model: a predictor that chooses, and a classifier at each resolution."""

    def __init__(self, directory, runtime=None):
        """Opens an export.

        Args:
            directory: that holds manifest.json.
            runtime: one of RUNTIMES; by default the first that is installed.

        Raises:
            Damaged: if a file that is needed is missing, or is not what it was.
            Unusable: if the runtime is.
        """
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory)
        self.runtime = _usable(runtime)
        self._networks = {}

    def predict(self, images, policy=None):
        """Yields (class, probability, option) of each image, one at a time.

        Args:
            images: uint8 [H, W, 3] in RGB, of any size.
            policy: {"price": 0.1}, at which options are charged, or {"cascade": {"options": [1, 0],
                "rule": "margin", "threshold": 0.5}}; by default that of the export. Those of other
                budgets are in the manifest, under "dials".
        """
        manifest = self.manifest
        policy = policy or manifest["policy"]
        for image in images:
            batch = prepared(image, manifest["preprocessing"])[None]
            answer = self._cascade if "cascade" in policy else self._routed
            option, log_p = answer(batch, **policy)
            best = int(log_p.argmax())
            yield manifest["classes"][best], float(np.exp(log_p[best])), option

    def _routed(self, batch, price):
        """The option of the highest score, less what it costs, and its answer [C]."""
        said = self.run("predictor", batch)
        charged = np.array(self.manifest["charged"], np.float32)
        worth = said["scores"][0] - np.float32(price) * charged / charged.max()
        option = self.manifest["options"][int(worth.argmax())]
        return option, (said if option == "predictor" else self.run(option, batch))["log_p"][0]

    def _cascade(self, batch, cascade):
        """The first option that is sure enough of its answer, or the last, and that answer [C]."""
        for index in cascade["options"]:
            option = self.manifest["options"][index]
            log_p = self.run(option, batch)["log_p"][0]
            *_, second, best = np.sort(np.exp(log_p.astype(float)))
            sure = best - second if cascade["rule"] == "margin" else best
            if sure >= cascade["threshold"]:
                break
        return option, log_p

    def run(self, network, images):
        """What a network says of uint8 images [B, H, W, 3] at the base size, arrays by name.

        "predictor": "scores" [B, O] of the options, and "log_p" [B, C] of the classes if these are
        options of its own. A resolution, such as "224": "log_p" [B, C].
        """
        if network not in self._networks:
            load = {"onnxruntime": self._onnx, "jax": self._jax}[self.runtime]
            self._networks[network] = load(self.manifest["networks"][network])
        return self._networks[network](images)

    def _onnx(self, files):
        import onnxruntime

        graph = checked(self.directory, files["onnx"], self.manifest)
        options = onnxruntime.SessionOptions()
        # Graphs take turns: threads of one that spin on would keep those of the next waiting.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))

    def _jax(self, files):
        import jax
        import jax.export

        if jax.default_backend() == "cpu" and jax.__version__ == WRONG:
            raise Unusable(f"expected another jax than {WRONG}, which gives wrong sums on CPUs: "
                           f"pip install 'jax!={WRONG}'")
        exported = jax.export.deserialize(
            bytearray(checked(self.directory, files["stablehlo"], self.manifest))
        )
        weights = read_tensors(checked(self.directory, "weights.safetensors", self.manifest))
        variables = {name: weights[name] for name in files["variables"]}
        call = jax.jit(exported.call)
        return lambda images: {
            name: np.asarray(found) for name, found in call(variables, images).items()
        }


def read_manifest(directory):
    """What manifest.json holds; raises Damaged if it is not whole."""
    path = Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        expected = manifest.pop("checksum")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise Damaged(f"{path}: expected the manifest of an export ({error})") from error
    if digest(as_text(manifest).encode()) != expected:
        raise Damaged(f"{path}: is not what was exported: its checksum differs")
    return manifest


def as_text(manifest):
    """A manifest as it is written and checked, without its own checksum."""
    return json.dumps(manifest, sort_keys=True)


def digest(data):
    return hashlib.sha256(data).hexdigest()


def checked(directory, name, manifest):
    """The bytes of a file; raises Damaged if they are not those that were exported."""
    path = Path(directory) / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path}: cannot be read: {error.strerror}") from error
    if digest(data) != manifest["files"][name]:
        raise Damaged(f"{path}: is not what was exported: its checksum differs")
    return data


def read_tensors(data):
    """The arrays of a safetensors file by name: a length, a JSON of places, and their bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    return {
        name: np.frombuffer(data, np.float32, (last - first) // 4, end + first).reshape(shape)
        for name, (shape, (first, last)) in (
            (name, (each["shape"], each["data_offsets"]))
            for name, each in json.loads(data[8:end]).items() if name != "__metadata__"
        )
    }


def prepared(image, preprocessing):
    """uint8 [H, W, 3] -> [base, base, 3]: squashed to a square, of which the centre is cropped."""
    side, size = preprocessing["resize"], preprocessing["crop"]
    if image.shape[:2] != (side, side):
        method = Image.Resampling[preprocessing["interpolation"].upper()]
        image = np.asarray(Image.fromarray(image).resize((side, side), method))
    start = (side - size) // 2
    return image[start : start + size, start : start + size]


def decoded(path):
    """uint8 [H, W, 3] of a file."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def _usable(runtime):
    installed = [name for name in RUNTIMES if importlib.util.find_spec(name)]
    wanted = [runtime] if runtime else RUNTIMES
    found = next((name for name in wanted if name in installed), None)
    if found is None:
        raise Unusable(
            f"expected {' or '.join(wanted)} to be installed: pip install onnxruntime, or "
            f"pip install 'jax!={WRONG}' flatbuffers"
        )
    return found


def main():
    parser = argparse.ArgumentParser(description="Classify images by an exported model.")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--runtime", choices=RUNTIMES)
    arguments = parser.parse_args()
    try:
        bundle = Bundle(Path(__file__).parent, arguments.runtime)
        for path in arguments.images:
            try:
                image = decoded(path)
            except Exception as error:
                print(json.dumps({"image": path, "error": str(error)}))
                continue
            ((label, probability, option),) = bundle.predict([image])
            print(json.dumps({
                "image": path, "label": label, "probability": round(probability, 6),
                "option": option,
            }))
    except (Damaged, Unusable) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
