"""A small ImageNet of tiny drawn JPEGs, laid out as people have the real one: in a folder, as the
ArrayRecord files of tfds, and as the Parquet files of the Hugging Face hub."""

import json
import random
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as official

from drnet_jax import config
from drnet_jax.data.imagenet import imagenet_100, synsets

TRAIN, VALIDATION = 5, 2  # images of each class
OTHERS = ("n01443537", "n02119789", "n12620546", "n15075141")  # not of ImageNet-100
WNIDS = tuple(sorted((*imagenet_100(), *OTHERS)))


class Drawn(NamedTuple):
    split: str
    wnid: str
    name: str  # as in ImageNet's archives
    image: bytes


def draw() -> list[Drawn]:
    """Images of noise, each another, in the order of ImageNet's archives."""
    rng = np.random.default_rng(0)

    def jpeg() -> bytes:
        image = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        return cv2.imencode(".jpg", image)[1].tobytes()

    train = [
        Drawn("train", wnid, f"{wnid}_{number}.JPEG", jpeg())
        for wnid in WNIDS for number in sorted(rng.choice(30_000, TRAIN, replace=False).tolist())
    ]
    of_validation = rng.permutation(np.repeat(WNIDS, VALIDATION)).tolist()
    return train + [
        Drawn("validation", wnid, f"ILSVRC2012_val_{number:08d}.JPEG", jpeg())
        for number, wnid in enumerate(of_validation, start=1)
    ]


def write_folder(root: Path, drawn: list[Drawn]) -> Path:
    """root/{train,val}/<wnid>/*.JPEG"""
    for each in drawn:
        folder = root / each.split.removesuffix("idation") / each.wnid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / each.name).write_bytes(each.image)
    return root


def write_tfds(root: Path, drawn: list[Drawn]) -> Path:
    """What tfds's builder writes, which would need TensorFlow to unpack the archives."""

    class Builder(official.Builder, skip_registration=True):
        name = "imagenet2012"
        pkg_dir_path = tfds.core.tfds_path("datasets/imagenet2012")

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in ("train", "validation")}

        def _generate_examples(self, split):
            for each in drawn:
                if each.split == split:
                    yield each.name, {
                        "file_name": each.name, "image": each.image, "label": each.wnid
                    }

    Builder(data_dir=root).download_and_prepare(file_format="array_record")
    return root


def write_parquet(root: Path, drawn: list[Drawn], names: list[str] | None = None) -> Path:
    """Three shuffled files of training, one of validation and one of a test, without labels."""
    labels = {wnid: label for label, wnid in enumerate(synsets())}
    by_split = {split: [each for each in drawn if each.split == split]
                for split in ("train", "validation")}
    random.Random(0).shuffle(by_split["train"])
    third = -(-len(by_split["train"]) // 3)
    files = {
        f"train-{at:05d}-of-00003-a1f2": by_split["train"][at * third : (at + 1) * third]
        for at in range(3)
    } | {"validation-00000-of-00001": by_split["validation"]}
    for name, rows in files.items():
        write_rows(
            root / f"{name}.parquet",
            [(each.image, each.name.replace(".", f"_{each.wnid}.")) for each in rows],
            [labels[each.wnid] for each in rows], names or hub_names(),
        )
    write_rows(root / "test-00000-of-00001.parquet",
               [(drawn[0].image, "ILSVRC2012_test_00000001.JPEG")], [-1], names or hub_names())
    return root


def hub_names() -> list[str]:
    """The classes as the hub's copy calls them, which may not have one name twice."""
    words = list(synsets().values())
    words[list(synsets()).index("n03126707")] = "crane2"
    return words


def write_rows(
    path: Path, images: list[tuple[bytes | None, str | None]], labels: list[int | None],
    names: list[str] | None = None,
) -> None:
    """A Parquet file as the library `datasets` writes it, in row groups of 100."""
    import pyarrow as pa
    import pyarrow.parquet

    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    schema = pa.schema([
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
    ], metadata)
    rows = [{"bytes": image, "path": name} for image, name in images]
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table([rows, labels], schema), path, row_group_size=100)


def settings(name: str, directory: Path, **overrides) -> config.Data:
    values = {
        "name": name, "dir": str(directory), "train_split": "train",
        "val_split": "val" if name == "folder" else "validation", "classes": "",
        "images_per_class": 0, "crop_area": (0.08, 1.0), "crop_ratio": (0.75, 4 / 3),
        "max_bad": 0.0, "timeout": 60.0, "workers": 0, "threads": 2,
    }
    return config.Data(**values | overrides)
