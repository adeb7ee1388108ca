"""Folders and tfds data sets: what they give, and what they say when something is missing."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drnet_jax import config
from drnet_jax.data import shapes, transforms
from drnet_jax.data.prepare import prepare
from drnet_jax.data.sources import open_source, resolve_classes
from drnet_jax.errors import UserError

FILES = {
    "train/cat/b.jpg": b"cat b",
    "train/cat/a.JPEG": b"cat a",
    "train/cat/.hidden.jpg": b"",
    "train/cat/notes.txt": b"",
    "train/Ant/x.PNG": b"ant x",
    "train/dog/z é.png": b"dog z",
    "train/.cache/y.png": b"",
    "train/readme.md": b"",
    "val/dog/1.jpg": b"val dog 1",
    "val/cat/2.jpg": b"val cat 2",
}


def settings(name, directory, train_split="train", val_split="val"):
    return config.Data(
        name=name, dir=str(directory), train_split=train_split, val_split=val_split,
        crop_area=(0.08, 1.0), crop_ratio=(0.75, 4 / 3), workers=0, threads=2,
    )


@pytest.fixture
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def contents(source):
    keys = [Path(source.key(index)) for index in range(len(source))]
    return [
        (str(Path(*key.parts[-2:])), source[index]["label"], source[index]["image"])
        for index, key in enumerate(keys)
    ]


def test_folder_is_sorted_by_class_and_name(folder):
    source = open_source(settings("folder", folder), training=True)
    assert source.classes == ("Ant", "cat", "dog")
    assert contents(source) == [
        ("Ant/x.PNG", 0, b"ant x"),
        ("cat/a.JPEG", 1, b"cat a"),
        ("cat/b.jpg", 1, b"cat b"),
        ("dog/z é.png", 2, b"dog z"),
    ]


def test_folder_validation_has_the_labels_of_training(folder):
    source = open_source(settings("folder", folder), training=False)
    assert source.classes == ("Ant", "cat", "dog")  # although val has no Ant
    assert contents(source) == [("cat/2.jpg", 1, b"val cat 2"), ("dog/1.jpg", 2, b"val dog 1")]


def test_folder_in_the_home_directory(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    source = open_source(settings("folder", f"~/{folder.name}"), training=True)
    assert source[0]["image"] == b"ant x"


def test_folder_survives_pickling(folder):
    source = open_source(settings("folder", folder), training=True)
    copy = pickle.loads(pickle.dumps(source))
    assert contents(copy) == contents(source)
    assert copy.classes == source.classes


def test_folder_opens_without_stat_per_image(folder, monkeypatch):
    expected = contents(open_source(settings("folder", folder), training=True))
    for name in ("b.jpg", "a.JPEG"):  # what cannot be read is noticed when it is read
        (folder / "train/cat" / name).unlink()
        (folder / "train/cat" / name).symlink_to(folder / "nowhere")
    source = open_source(settings("folder", folder), training=True)
    assert len(source) == len(expected)
    with pytest.raises(UserError, match="cannot read the image"):
        source[1]


def remove(folder, name):
    shutil.rmtree(folder / name)


def make(folder, name):
    (folder / name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("change", "training", "message"),
    [
        (lambda folder: remove(folder, "."), True, r"no folder .*/folder\d+$"),
        (lambda folder: remove(folder, "train"), True, "no folder .*/train$"),
        (lambda folder: remove(folder, "val"), False, "no folder .*/val$"),
        (lambda folder: (remove(folder, "val"), make(folder, "val")), False, "folder per class"),
        (lambda folder: make(folder, "train/empty"), True, r"train/empty: expected images .*none"),
        (lambda folder: make(folder, "val/cow"), False, "class 'cow' is not a folder in .*train"),
    ],
)
def test_folder_errors(folder, change, training, message):
    change(folder)
    with pytest.raises(UserError, match=message):
        open_source(settings("folder", folder), training)


def test_folder_needs_a_directory():
    with pytest.raises(UserError, match=r"config\.data\.dir: expected the folder"):
        open_source(settings("folder", ""), training=True)


def test_resolve_classes(folder):
    source = open_source(settings("folder", folder), training=True)
    assert resolve_classes(source, 0) == resolve_classes(source, 3) == 3
    with pytest.raises(UserError, match=r"expected 3.*received 1000"):
        resolve_classes(source, 1000)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "_SPLITS", {"train": 48, "validation": 24})
        prepare("drnet_shapes", str(directory))
    return directory


def tfds_source(directory, training, **splits):
    splits = {"train_split": "train", "val_split": "validation", **splits}
    return open_source(settings("drnet_shapes", directory, **splits), training)


def test_tfds_gives_what_the_builder_drew(prepared):
    drawn = {image.tobytes(): (label, scale) for image, label, scale in shapes.draw(0, 48)}
    source = tfds_source(prepared, training=True)
    assert source.classes == shapes.CLASSES
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
    monkeypatch.setattr(shapes, "_SPLITS", {"train": 24, "validation": 24})
    assert len(tfds_source(tmp_path, training=False)) == 24


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
    version = tmp_path / "drnet_shapes" / "1.0.0"
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
