"""tfds data sets: what they give, and what they say when something is missing."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drnet_jax import config
from drnet_jax.data import drnet_shapes, transforms
from drnet_jax.data.prepare import prepare
from drnet_jax.data.sources import open_source, resolve_classes
from drnet_jax.errors import UserError


def settings(name, directory, train_split="train", val_split="val"):
    return config.Data(
        name=name, dir=str(directory), train_split=train_split, val_split=val_split,
        classes="", images_per_class=0, crop_area=(0.08, 1.0), crop_ratio=(0.75, 4 / 3),
        max_bad=0.0, timeout=60.0, workers=0, threads=2,
    )


class OfClasses:
    def __init__(self, *classes):
        self.classes = classes


def test_resolve_classes():
    source = OfClasses("Ant", "cat", "dog")
    assert resolve_classes(source, 0) == resolve_classes(source, 3) == 3
    with pytest.raises(UserError, match=r"expected 3.*received 1000"):
        resolve_classes(source, 1000)


def test_a_single_class_is_refused():
    # As if config.data.dir were the folder above the one that is meant.
    with pytest.raises(UserError, match="at least two classes, found train only"):
        resolve_classes(OfClasses("train"), 0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drnet_shapes, "_SPLITS", {"train": 48, "validation": 24})
        prepare("drnet_shapes", str(directory))
    return directory


def tfds_source(directory, training, **splits):
    splits = {"train_split": "train", "val_split": "validation", **splits}
    return open_source(settings("drnet_shapes", directory, **splits), training)


def test_tfds_gives_what_the_builder_drew(prepared):
    drawn = {image.tobytes(): (label, scale) for image, label, scale in drnet_shapes.draw(0, 48)}
    source = tfds_source(prepared, training=True)
    assert source.classes == drnet_shapes.CLASSES
    assert len(source) == 48
    assert source.key(7) == "drnet_shapes/train[7]"
    for index in range(48):
        example = source[index]
        image = transforms.decode(example["image"])
        assert drawn.pop(image.tobytes()) == (example["label"], example["needed_scale"])
    assert not drawn


def test_tfds_survives_pickling_and_slices_splits(prepared):
    source = tfds_source(prepared, training=False, val_split="train[25%:50%]")
    whole = tfds_source(prepared, training=True)
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i]["image"] for i in range(len(copy))] == [
        whole[i]["image"] for i in range(12, 24)
    ]


def test_tfds_prepares_drnet_shapes_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(drnet_shapes, "_SPLITS", {"train": 24, "validation": 24})
    assert len(tfds_source(tmp_path, training=False)) == 24


def test_tfds_has_a_fingerprint_and_no_notes(prepared):
    source = tfds_source(prepared, training=True)
    assert source.notes == ()
    assert source.fingerprint == tfds_source(prepared, training=True).fingerprint
    assert re.fullmatch("[0-9a-f]{16}", source.fingerprint)
    others = [
        tfds_source(prepared, training=True, train_split=split).fingerprint
        for split in ("train[:50%]", "train[50%:]", "validation")
    ]
    assert len({source.fingerprint, *others}) == 4


def test_tfds_has_its_own_classes(prepared):
    data = settings("drnet_shapes", prepared, "train", "validation")
    assert open_source(data, False, drnet_shapes.CLASSES).classes == drnet_shapes.CLASSES
    with pytest.raises(UserError, match=r"of the 2 classes cat, dog, .* has 12, disk_solid"):
        open_source(data, False, ("cat", "dog"))


@pytest.mark.parametrize("split", ["test", "train[:0%]", "train[oops"])
def test_tfds_unknown_split(prepared, split):
    with pytest.raises(UserError, match="its splits are train, validation"):
        tfds_source(prepared, training=True, train_split=split)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_set", "data set that tfds knows.*received 'no_such_set'"),
        ("drnet_shapes:9.9.9", "tfds cannot load 'drnet_shapes:9.9.9'"),
        ("ag_news_subset", "features 'image' and 'label'"),
        ("mnist", r"(?s)'mnist' is not prepared in .*drnet_jax.data.prepare --name mnist --dir"),
    ],
)
def test_tfds_errors(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        open_source(settings(name, tmp_path), training=True)


def test_tfds_refuses_files_without_random_access(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    version = tmp_path / "drnet_shapes" / str(drnet_shapes.DrnetShapes.VERSION)
    for path in version.glob("*.array_record-*"):
        path.rename(version / path.name.replace("array_record", "tfrecord"))
    info = json.loads((version / "dataset_info.json").read_text())
    (version / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"(?s)expected .* array_record .*holds tfrecord"):
        tfds_source(tmp_path, training=True)


def test_prepare_from_the_command_line(prepared):
    command = [sys.executable, "-m", "drnet_jax.data.prepare", "--dir", str(prepared), "--name"]
    done = subprocess.run([*command, "drnet_shapes"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "train (48), validation (24)" in done.stdout
    failed = subprocess.run([*command, "no_such_set"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: config.data.name: expected")


def test_reading_needs_no_tensorflow(prepared):
    code = (
        "import sys\n"
        "from tests.test_data_sources import tfds_source\n"
        f"assert len(tfds_source({str(prepared)!r}, training=True)[0]['image']) > 1000\n"
        "assert 'tensorflow' not in sys.modules"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
