"""ImageNet-100 and other subsets: the same images from a folder, from tfds and from Parquet."""

import dataclasses
import hashlib
import io
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from drnet_jax.data import loader, tfds_source
from drnet_jax.data.convert import convert
from drnet_jax.data.folder import FolderSource
from drnet_jax.data.imagenet import class_words, imagenet_100, plain_name, synsets
from drnet_jax.data.sources import open_source
from drnet_jax.data.subset import Subset, classes_named, write_classes
from drnet_jax.errors import UserError
from tests import fake_imagenet
from tests.fake_imagenet import OTHERS, TRAIN, VALIDATION, WNIDS, settings

FORMS = ("folder", "imagenet2012", "records")
PER_CLASS = 3


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_imagenet_100_is_the_same_everywhere():
    classes = imagenet_100()
    assert len(set(classes)) == 100 and list(classes) == sorted(classes)
    assert sha256("\n".join(classes)) == CHECKSUM
    # Anybody can draw them: `printf n01440764 | sha256sum`, and so on.
    assert set(classes) == set(sorted(synsets(), key=sha256)[:100])


CHECKSUM = "977b53d304386a1f42a7417a1333570a67550f1295b6c44ac1e2f44e733bdbe8"


def test_synsets_are_those_of_other_copies_in_the_same_order():
    labels = tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split()
    assert list(synsets()) == labels and len(labels) == 1000
    assert synsets()["n01440764"] == "tench, Tinca tinca"


def test_words_of_classes():
    assert class_words(("n01440764", "n03126707", "n99999999", "a, b")) == (
        "tench", "crane", "n99999999", "a, b")


@pytest.mark.parametrize(("name", "plain"), [
    ("n01440764_10026_n01440764.JPEG", "n01440764_10026.JPEG"),
    ("ILSVRC2012_val_00000293_n01440764.JPEG", "ILSVRC2012_val_00000293.JPEG"),
    ("n01440764_10026.JPEG", "n01440764_10026.JPEG"),
    ("holiday_n01440764.JPEG", "holiday_n01440764.JPEG"),
    ("n01440764_10026_n01440764", "n01440764_10026_n01440764"),
])
def test_names_as_in_the_archives(name, plain):
    assert plain_name(name) == plain


@pytest.fixture(scope="module")
def drawn():
    return fake_imagenet.draw()


@pytest.fixture(scope="module")
def forms(drawn, tmp_path_factory):
    """Directories by config.data.name."""
    pytest.importorskip("pyarrow", reason="writes the Parquet files")
    root = tmp_path_factory.mktemp("imagenet")
    convert(fake_imagenet.write_parquet(root / "parquet", drawn), root / "records")
    return {
        "folder": fake_imagenet.write_folder(root / "folder", drawn),
        "imagenet2012": fake_imagenet.write_tfds(root / "tfds", drawn),
        "records": root / "records",
    }


def opened(forms, form, training=True, known=None, **overrides):
    overrides = {"classes": "imagenet100", "images_per_class": PER_CLASS} | overrides
    return open_source(settings(form, forms[form], **overrides), training, known)


def contents(source):
    return [(source[index]["label"], source[index]["image"]) for index in range(len(source))]


def expected(drawn, split, classes, per_class=0):
    """Worked out otherwise: (label, image) by class and name."""
    rows = []
    for label, wnid in enumerate(classes):
        images = {each.name: each.image for each in drawn
                  if (each.split, each.wnid) == (split, wnid)}
        chosen = sorted(images, key=sha256)[: per_class or len(images)]
        rows += [(label, images[name]) for name in sorted(chosen)]
    return rows


@pytest.mark.parametrize("form", FORMS)
def test_imagenet_100_is_the_same_from_every_form(forms, drawn, form):
    train, validation = opened(forms, form), opened(forms, form, training=False)
    assert train.classes == validation.classes == imagenet_100()
    assert contents(train) == expected(drawn, "train", imagenet_100(), PER_CLASS)
    assert len(train) == 100 * PER_CLASS
    # All images of validation are kept.
    assert contents(validation) == expected(drawn, "validation", imagenet_100())
    assert len(validation) == 100 * VALIDATION
    assert contents(pickle.loads(pickle.dumps(train))) == contents(train)


def test_a_run_can_go_on_with_another_form(forms):
    sources = [opened(forms, form) for form in FORMS]
    assert len({source.fingerprint for source in sources}) == 1
    batches = []
    for source in sources:
        stream = loader.train_batches(
            source, settings("folder", ""), size=8, batch_size=16, seed=1)
        batches.append(next(stream))
        stream.close()
    for batch in batches[1:]:
        for key, array in batches[0].items():
            np.testing.assert_array_equal(batch[key], array)


@pytest.mark.parametrize("form", FORMS)
def test_a_fingerprint_is_of_the_subset(forms, form, tmp_path):
    write_classes(tmp_path / "c.txt", imagenet_100()[1:])
    found = [
        opened(forms, form, **overrides).fingerprint for overrides in (
            {}, {"images_per_class": 2}, {"images_per_class": 0},
            {"classes": str(tmp_path / "c.txt")}, {"classes": "", "images_per_class": 0},
        )
    ]
    assert len(set(found)) == len(found)
    # More images than there are is all.
    assert opened(forms, form, images_per_class=TRAIN).fingerprint == found[2]


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_classes_gives_the_order_of_labels(forms, drawn, form, tmp_path):
    classes = ("n15075141", "n01440764", "n12620546")
    (tmp_path / "c.txt").write_text("n15075141\n\n  n01440764 \nn12620546")
    source = opened(forms, form, classes=str(tmp_path / "c.txt"), images_per_class=0)
    assert source.classes == classes
    assert contents(source) == expected(drawn, "train", classes)


def test_images_of_all_classes_can_be_fewer(forms, drawn):
    source = opened(forms, "folder", classes="", images_per_class=1)
    assert contents(source) == expected(drawn, "train", WNIDS, 1)
    # tfds and Parquet know classes of which this small copy has no images.
    for form in ("imagenet2012", "records"):
        source = opened(forms, form, classes="", images_per_class=1)
        assert source.classes == tuple(synsets()) and len(source) == len(WNIDS)


def test_evaluation_of_the_subset_on_a_whole_folder(forms, drawn, tmp_path):
    known = imagenet_100()
    of_run = opened(forms, "folder", training=False)
    again = opened(forms, "folder", training=False, known=known)
    assert contents(again) == contents(of_run)
    # As of `drnet eval --data`: class folders without split, not all of them, and others.
    shutil.copytree(forms["folder"] / "val", tmp_path / "plain")
    shutil.rmtree(tmp_path / "plain" / known[0])
    data = settings("folder", tmp_path / "plain", classes="imagenet100")
    plain = open_source(data, False, known)
    assert plain.classes == known
    assert contents(plain) == [row for row in contents(of_run) if row[0]]
    assert plain.notes == (
        f"{tmp_path}/plain: left out 4 folders of other classes: {', '.join(OTHERS[:3])} and 1 "
        "more", f"{tmp_path}/plain: no images of 1 of the 100 classes: {known[0]}",
    )
    # The file of a run's classes may be gone: its checkpoint knows them.
    moved = dataclasses.replace(data, classes="gone.txt")
    assert contents(open_source(moved, False, known)) == contents(plain)


@pytest.mark.parametrize("form", ["imagenet2012", "records"])
def test_evaluation_of_the_subset_in_other_forms(forms, form):
    known = imagenet_100()[::-1]
    source = opened(forms, form, training=False, known=known)
    assert source.classes == known
    assert Counter(label for label, _ in contents(source)) == dict.fromkeys(range(100), VALIDATION)
    with pytest.raises(UserError, match=r"expected a data set of the 100 classes .* has 1000"):
        opened(forms, form, training=False, known=known, classes="")


@pytest.mark.parametrize("form", FORMS)
def test_an_unknown_class_is_named(forms, form, tmp_path):
    write_classes(tmp_path / "c.txt", ("n01440764", "tench"))
    with pytest.raises(UserError, match=(
        r"^config.data.classes: .* found none of tench in the split 'train' of /.*$"
    )):
        opened(forms, form, classes=str(tmp_path / "c.txt"))
    write_classes(tmp_path / "c.txt", ("goldfish", "tench"))
    with pytest.raises(UserError, match=r"(goldfish, tench among the \d+ images of the classes "
                       r"n01440764|none of the 2 classes of config.data.classes: goldfish, tench)"):
        opened(forms, form, classes=str(tmp_path / "c.txt"))


@pytest.mark.parametrize(("content", "message"), [
    (None, r"expected 'imagenet100' or a file of class names, one a line, received '.*c.txt'"),
    ("", "holds none$"),
    ("ant\n", "holds 'ant'$"),
    ("ant\nbee\nant\n", "holds 'ant' twice$"),
])
def test_files_of_classes_that_will_not_do(tmp_path, content, message):
    if content is not None:
        (tmp_path / "c.txt").write_text(content)
    with pytest.raises(UserError, match=f"^config.data.classes: .*{message}"):
        classes_named(str(tmp_path / "c.txt"))


def test_classes_are_written_as_they_are_read(tmp_path):
    names = ("café", "\udcff", "two words", "n01440764")
    write_classes(tmp_path / "c.txt", names)
    assert classes_named(str(tmp_path / "c.txt")) == names


def test_a_subset_of_names_in_another_composition(tmp_path):
    for name in ("cafe\u0301", "bar", "pub"):  # as copied from macOS
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.jpg").write_bytes(name.encode())
    write_classes(tmp_path / "c.txt", ("pub", "caf\u00e9"))
    data = settings("folder", tmp_path, classes=str(tmp_path / "c.txt"))
    assert contents(open_source(data, True)) == [(0, b"pub"), (1, "cafe\u0301".encode())]


def test_a_split_without_labels_has_no_subset(forms):
    class Unlabelled(FolderSource):
        def index(self):
            return dataclasses.replace(super().index(), labels=np.full(len(self), -1))

    source = Unlabelled(str(forms["folder"]), "train", "train")
    with pytest.raises(UserError, match=r"JPEG: expected a label from 0 to 103, received -1"):
        Subset(source, imagenet_100())


class TestIndexOfTfds:
    @pytest.fixture
    def data(self, forms, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        shutil.copytree(forms["imagenet2012"], tmp_path / "tfds",
                        ignore=shutil.ignore_patterns("drnet_index*"))
        return settings("imagenet2012", tmp_path / "tfds", classes="imagenet100")

    @staticmethod
    def files(directory):
        return [path.relative_to(directory) for path in directory.rglob("drnet_index_*.json")]

    @staticmethod
    def unread(monkeypatch):
        def read(self):
            raise AssertionError("read again")

        monkeypatch.setattr(tfds_source.TfdsSource, "_read_index", read)

    def test_is_read_once(self, data, tmp_path, monkeypatch):
        before = contents(open_source(data, True))
        (file,) = self.files(tmp_path)
        assert file.parent == Path("tfds/imagenet2012/5.1.0")
        self.unread(monkeypatch)
        assert contents(open_source(data, True)) == before
        with pytest.raises(AssertionError, match="read again"):
            open_source(data, False)  # another split

    def test_is_kept_in_the_users_cache_where_the_data_cannot_be_written(
        self, data, tmp_path, monkeypatch
    ):
        write = tfds_source.write_json

        def refuse(path, value):  # as root may write everywhere
            if "cache" not in path.parts:
                raise PermissionError(13, "Permission denied")
            write(path, value)

        monkeypatch.setattr(tfds_source, "write_json", refuse)
        before = contents(open_source(data, True))
        (file,) = self.files(tmp_path)
        assert file.parent == Path("cache/drnet_jax")
        self.unread(monkeypatch)
        assert contents(open_source(data, True)) == before

    def test_is_not_that_of_other_images(self, data, drawn, tmp_path):
        open_source(data, True)
        (file,) = self.files(tmp_path)
        (tmp_path / file).rename(tmp_path / file.name)
        shutil.rmtree(tmp_path / "tfds")
        # As many of the same names, but every label has moved on by one, and one image is longer.
        following = dict(zip(WNIDS, (*WNIDS[1:], WNIDS[0]), strict=True))
        others = [each._replace(wnid=following[each.wnid]) for each in drawn]
        others[0] = others[0]._replace(image=others[0].image + b" ")
        fake_imagenet.write_tfds(tmp_path / "tfds", others)
        (tmp_path / file.name).rename(tmp_path / file)
        assert contents(open_source(data, True)) == expected(others, "train", imagenet_100())

    def test_that_is_damaged_is_made_anew(self, data, tmp_path):
        before = contents(open_source(data, True))
        (file,) = self.files(tmp_path)
        (tmp_path / file).write_text("{")
        assert contents(open_source(data, True)) == before

    def test_of_a_data_set_without_names_is_of_contents(self, tmp_path, monkeypatch):
        monkeypatch.setattr("drnet_jax.data.drnet_shapes._SPLITS", {"train": 48, "validation": 24})
        data = settings("drnet_shapes", tmp_path, images_per_class=1)
        source, whole = (
            open_source(each, True) for each in (data, settings("drnet_shapes", tmp_path))
        )
        images = contents(whole)
        assert contents(source) == [
            min((row for row in images if row[0] == label),
                key=lambda row: sha256(hashlib.sha256(row[1]).hexdigest()))
            for label in range(12)
        ]
        assert source[0]["needed_scale"] in (0.5, 0.75, 1.0)


def official_labels():
    """The classes of ImageNet's validation images, in the order of their names."""
    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    return path.read_text().split()


def test_the_builder_of_tfds_prepares_the_same(drawn, tmp_path):
    """From ImageNet's archives, as whoever has them and TensorFlow does."""
    pytest.importorskip("tensorflow", reason="tfds needs it to unpack the archives of ImageNet")
    manual, of_class = tmp_path / "downloads/manual", tmp_path / "classes"
    manual.mkdir(parents=True)
    of_class.mkdir()

    def archive(path, files):
        with tarfile.open(path, "w") as tar:
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

    for wnid in WNIDS:
        archive(of_class / f"{wnid}.tar", [
            (each.name, each.image) for each in drawn if (each.split, each.wnid) == ("train", wnid)
        ])
    archive(manual / "ILSVRC2012_img_train.tar",
            [(path.name, path.read_bytes()) for path in of_class.iterdir()])
    validation = [(each.name, each.image) for each in drawn if each.split == "validation"]
    archive(manual / "ILSVRC2012_img_val.tar", validation)
    command = [sys.executable, "-m", "drnet_jax.data.prepare", "--name", "imagenet2012", "--dir",
               str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    data = settings("imagenet2012", tmp_path, classes="imagenet100", images_per_class=PER_CLASS)
    assert contents(open_source(data, True)) == expected(
        drawn, "train", imagenet_100(), PER_CLASS)
    places = {wnid: place for place, wnid in enumerate(imagenet_100())}
    labelled = zip(official_labels(), validation, strict=False)  # of which there are 50,000
    assert contents(open_source(data, False)) == sorted(
        ((places[wnid], image) for wnid, (_, image) in labelled if wnid in places),
        key=lambda row: row[0],
    )


class TestFlatValidation:
    @pytest.fixture
    def flat(self, drawn, tmp_path):
        """ImageNet as it is unpacked: validation without folders; and the class of each image."""
        classes = official_labels()[: len(WNIDS) * VALIDATION]
        (tmp_path / "val").mkdir()
        for each in drawn:
            if each.split == "validation":
                (tmp_path / "val" / each.name).write_bytes(each.image)
        for wnid in {*classes, *WNIDS}:
            (tmp_path / "train" / wnid).mkdir(parents=True)
            (tmp_path / "train" / wnid / "1.JPEG").write_bytes(b"1")
        return tmp_path, classes

    @pytest.mark.parametrize("known", [None, WNIDS])
    def test_says_what_to_do(self, flat, known):
        root, classes = flat
        with pytest.raises(UserError, match=(
            f"^{root}/val: expected one folder per class, found {len(classes)} images of "
            "ImageNet's validation set as it is unpacked, without folders; move each .* as "
            r"docs/data.md shows \(\"The folder\"\)$"
        )):
            open_source(settings("folder", root), False, known)

    def test_is_sorted_by_what_the_documentation_shows(self, flat):
        root, classes = flat
        text = (Path(__file__).parents[1] / "docs/data.md").read_text()
        (code,) = re.findall(r"## ImageNet.*?```python\n(.*?)```", text, re.DOTALL)
        exec(code.replace("/data/imagenet", str(root)), {})
        source = open_source(settings("folder", root), False)
        found = {Path(source.key(at)).name: source.classes[source[at]["label"]]
                 for at in range(len(source))}
        assert found == {
            f"ILSVRC2012_val_{number:08d}.JPEG": wnid for number, wnid in enumerate(classes, 1)}

    def test_of_other_images_is_told_as_such(self, tmp_path):
        (tmp_path / "train").mkdir()
        (tmp_path / "train/a.jpg").write_bytes(b"")
        with pytest.raises(UserError, match=r"found 1 image and no folder \(a.jpg\); put each"):
            open_source(settings("folder", tmp_path), True)
