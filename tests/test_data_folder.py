"""Folders of images as people have them: what is read, in which order, and what is passed over."""

import os
import pickle
import re
import shutil
import socket
import unicodedata

import cv2
import numpy as np
import pytest

from drnet_jax.data import transforms
from drnet_jax.data.sources import open_source
from drnet_jax.errors import UserError
from tests.test_data_sources import settings

FILES = {
    "train/cat/b.jpg": b"cat b",
    "train/cat/a.JPEG": b"cat a",
    "train/Ant/x.PNG": b"ant x",
    "train/dog/z é.png": b"dog z",
    "val/dog/1.jpg": b"val dog 1",
    "val/cat/2.jpg": b"val cat 2",
    "val/Ant/0.jpg": b"val ant 0",
}


def write(folder, *names, content=b""):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    for name, content in FILES.items():
        write(folder, name, content=content)
    return folder


def opened(folder, training=True, classes=None):
    return open_source(settings("folder", folder), training, classes)


def contents(source):
    return [
        (source.key(index).removeprefix(f"{source._root}/"), source[index]["label"],
         source[index]["image"])
        for index in range(len(source))
    ]


def names(source):
    return [name for name, _, _ in contents(source)]


def test_sorted_by_class_and_name(folder):
    source = opened(folder)
    assert source.classes == ("Ant", "cat", "dog")
    assert contents(source) == [
        ("Ant/x.PNG", 0, b"ant x"),
        ("cat/a.JPEG", 1, b"cat a"),
        ("cat/b.jpg", 1, b"cat b"),
        ("dog/z é.png", 2, b"dog z"),
    ]
    assert source.notes == ()


def test_validation_has_the_labels_of_training(folder):
    shutil.rmtree(folder / "val/Ant")
    source = opened(folder, training=False)
    assert source.classes == ("Ant", "cat", "dog")
    assert contents(source) == [("cat/2.jpg", 1, b"val cat 2"), ("dog/1.jpg", 2, b"val dog 1")]


@pytest.mark.parametrize("empty", [False, True])
def test_classes_without_images_in_validation_are_named(folder, empty):
    for name in ("Ant", "dog"):
        shutil.rmtree(folder / "val" / name)
        if empty:
            (folder / "val" / name).mkdir()
    source = opened(folder, training=False)
    assert contents(source) == [("cat/2.jpg", 1, b"val cat 2")]
    assert source.notes == (f"{folder}/val: no images of 2 of the 3 classes: Ant, dog",)


def test_in_the_home_directory(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert opened(f"~/{folder.name}")[0]["image"] == b"ant x"


def test_survives_pickling(folder):
    source = opened(folder)
    copy = pickle.loads(pickle.dumps(source))
    assert contents(copy) == contents(source)
    assert (copy.classes, copy.notes) == (source.classes, source.notes)
    assert copy.fingerprint == source.fingerprint


def test_opens_without_stat_per_image(folder, monkeypatch):
    expected = names(opened(folder))
    scandir = os.scandir

    class Emptied:
        """Lists a folder whose files are gone by the time that they are looked at."""

        def __init__(self, path):
            with scandir(path) as entries:
                self._entries = list(entries)
            for entry in self._entries:
                if not entry.is_dir():
                    os.unlink(entry.path)

        def __enter__(self):
            return iter(self._entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Emptied)
    source = opened(folder)
    assert [source.key(index).removeprefix(f"{folder}/train/") for index in range(4)] == expected
    with pytest.raises(UserError, match="cannot read the image: No such file"):
        source[1]


IMAGE = np.full((40, 48, 3), (10, 100, 200), np.uint8)  # blue, green, red


ENCODED_AS = {".apng": ".png", ".jfif": ".jpg"}
GREY = (".pbm", ".pgm")


def test_all_formats_are_read(tmp_path):
    suffixes = [suffix for suffix in transforms.SUFFIXES if suffix != ".j2k"]  # cv2 writes none
    for suffix in suffixes:
        path = tmp_path / "train/a" / f"{suffix[1:]}{suffix.upper()}"
        write(tmp_path, path)
        image = np.zeros((40, 48), np.uint8) if suffix in GREY else IMAGE
        path.write_bytes(cv2.imencode(ENCODED_AS.get(suffix, suffix), image)[1].tobytes())
    source = opened(tmp_path)
    assert len(source) == len(suffixes)
    for index in range(len(source)):
        image = transforms.decode(source[index]["image"])
        assert image.shape == IMAGE.shape
        expected = (0, 0, 0) if source.key(index).lower().endswith(GREY) else (200, 100, 10)
        np.testing.assert_allclose(
            image.mean((0, 1)), expected, atol=4, err_msg=source.key(index)  # GIF dithers
        )


def test_subfolders_are_read_in_one_order(folder):
    write(folder, "train/cat/a/z.jpg", "train/cat/a/deep/er.jpg", "train/cat/c/1.webp",
          "train/cat/B/1.png", "train/cat/a.d/1.gif")
    source = opened(folder)
    assert names(source) == [
        "Ant/x.PNG", "cat/B/1.png", "cat/a.JPEG", "cat/a.d/1.gif", "cat/a/deep/er.jpg",
        "cat/a/z.jpg", "cat/b.jpg", "cat/c/1.webp", "dog/z é.png",
    ]
    assert [source[index]["label"] for index in range(9)] == [0] + 7 * [1] + [2]
    assert source.notes == ()


def test_what_is_passed_over_is_counted_and_named(folder):
    write(
        folder, "train/cat/4.txt", "train/cat/3.txt", "train/cat/sub/2.heic", "train/cat/README",
        "train/cat/.hidden.jpg", "train/.cache/y.png", "train/readme.md", "train/x.jpg",
    )
    os.mkfifo(folder / "train/cat/fifo.jpg")  # opening it would wait for ever
    os.mkfifo(folder / "train/fifo")
    (folder / "train/cat/zero.png").symlink_to("/dev/zero")
    (folder / "train/cat/gone.png").symlink_to(folder / "nowhere.png")
    (folder / "train/cat/self.png").symlink_to("self.png")
    (folder / "train/bee").symlink_to(folder / "nowhere", target_is_directory=True)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(folder / "train/dog/socket.png"))
    source = opened(folder)
    assert names(source) == [name[6:] for name in sorted(FILES) if name.startswith("train")]
    root = f"{folder}/train: passed over"
    assert source.notes == (
        f"{root} 4 files that are no image (.heic, .txt, no suffix): "
        "cat/3.txt, cat/4.txt, cat/README and 1 more",
        f"{root} 2 files outside the class folders: readme.md, x.jpg",
        f"{root} 2 hidden files or folders: .cache, cat/.hidden.jpg",
        f"{root} 3 broken links: bee, cat/gone.png, cat/self.png",
        f"{root} 4 FIFOs, sockets or device files: "
        "cat/fifo.jpg, cat/zero.png, dog/socket.png and 1 more",
    )
    # Training's are told by training's source.
    assert opened(folder, training=False).notes == ()


def test_links_to_images_and_folders_are_followed(folder):
    (folder / "train/dog/linked.jpg").symlink_to(folder / "train/cat/b.jpg")
    (folder / "train/dog/more").symlink_to(folder / "val/dog")
    (folder / "train/elk").symlink_to(folder / "val/cat")
    source = opened(folder)
    assert contents(source)[3:] == [
        ("dog/linked.jpg", 2, b"cat b"), ("dog/more/1.jpg", 2, b"val dog 1"),
        ("dog/z é.png", 2, b"dog z"), ("elk/2.jpg", 3, b"val cat 2"),
    ]


def test_links_in_a_circle_end(folder):
    (folder / "train/cat/up").symlink_to(folder / "train/cat")
    (folder / "train/dog/other").symlink_to(folder / "train/Ant")
    (folder / "train/Ant/other").symlink_to(folder / "train/dog")
    source = opened(folder)
    assert names(source) == [
        "Ant/other/z é.png", "Ant/x.PNG", "cat/a.JPEG", "cat/b.jpg", "dog/other/x.PNG",
        "dog/z é.png",
    ]
    assert source.notes == (
        f"{folder}/train: passed over 3 links to folders that they lie in: "
        "Ant/other/other, cat/up, dog/other/other",
    )


def test_names_that_no_terminal_shows_are_escaped_in_notes(folder):
    path = os.fsencode(folder / "train/cat") + b"/\xff\n.txt"
    with open(path, "wb"):
        pass
    (note,) = opened(folder).notes
    assert note.endswith(r"cat/\udcff\n.txt")
    note.encode()


def test_folders_that_cannot_be_read_are_named(folder, monkeypatch):
    (folder / "train/cat/secret").mkdir()
    scandir = os.scandir

    def refuse(path):  # as root may read everything
        if str(path).rstrip("/").endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="cat/secret/: cannot read the folder: Permission denied"):
        opened(folder)


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("train", "val"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED), (DECOMPOSED, DECOMPOSED)]
)
def test_classes_are_compared_in_composed_form(folder, train, val):
    write(folder, f"train/{train}/x.jpg", f"val/{val}/y.jpg", content=b"!")
    for training, name in ((True, f"{train}/x.jpg"), (False, f"{val}/y.jpg")):
        source = opened(folder, training)
        assert source.classes == ("Ant", COMPOSED, "cat", "dog")
        assert (name, 1, b"!") in contents(source)
        assert source.notes == ()
    # A checkpoint may know the other form, which stays as it is.
    known = ("Ant", DECOMPOSED, "cat", "dog")
    source = opened(folder, False, known)
    assert source.classes == known and (f"{val}/y.jpg", 1, b"!") in contents(source)


def test_two_folders_of_one_composed_name_are_refused(folder):
    write(folder, f"train/{COMPOSED}/x.jpg", f"train/{DECOMPOSED}/x.jpg")
    with pytest.raises(UserError, match=re.escape(
        f"'{DECOMPOSED}' (U+0063 U+0061 U+0066 U+0065 U+0301) and "
        f"'{COMPOSED}' (U+0063 U+0061 U+0066 U+00E9)"
    )):
        opened(folder)


@pytest.fixture
def plain(tmp_path):
    """A test folder without splits or some of the classes."""
    write(tmp_path, "dog/1.jpg", "dog/2.jpg", "bee/0.jpg", "readme.md")
    return tmp_path


KNOWN = ("dog", "cat", "bee", "ant")  # a checkpoint's, in an order of its own


@pytest.mark.parametrize("training", [False, True])
def test_a_plain_folder_is_read_with_known_classes(plain, training):
    source = opened(plain, training, KNOWN)
    assert source.classes == KNOWN
    assert contents(source) == [("dog/1.jpg", 0, b""), ("dog/2.jpg", 0, b""), ("bee/0.jpg", 2, b"")]
    assert source.notes == (
        f"{plain}: passed over 1 file outside the class folders: readme.md",
        f"{plain}: no images of 2 of the 4 classes: cat, ant",
    )


def test_the_split_is_preferred_to_the_folder_itself(folder):
    shutil.rmtree(folder / "train")
    source = opened(folder, False, ["cat", "dog", "bee", "Ant"])
    assert [label for _, label, _ in contents(source)] == [0, 1, 3]


def test_a_class_that_is_named_like_the_split(plain):
    write(plain, "val/1.jpg")
    assert opened(plain, False, (*KNOWN, "val"))[3]["label"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: write(plain, "cow/1.jpg"),
         r"/cow: 'cow' is none of the 4 classes of the model: dog, cat, bee and 1 more; nor is "
         "there a folder 'val' of class folders beside it"),
        (lambda plain: write(plain, "val/cow/1.jpg"), r"/val/cow: .* bee and 1 more$"),
        (lambda plain: [shutil.rmtree(plain / name) for name in ("dog", "bee")],
         "expected one folder per class, found no folder"),
        (lambda plain: [path.unlink() for path in plain.glob("*/*.jpg")],
         r"expected images \(\.jpg, .*\), found none"),
        (shutil.rmtree, r"there is no folder .*\d"),
    ],
)
def test_plain_folder_errors(plain, change, message):
    change(plain)
    with pytest.raises(UserError, match=message):
        opened(plain, False, KNOWN)


def remove(folder, name):
    shutil.rmtree(folder / name)


def make(folder, name):
    (folder / name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("change", "training", "message"),
    [
        (lambda folder: remove(folder, "."), True, r"no folder .*/folder\d+$"),
        (lambda folder: remove(folder, "train"), True, "no folder .*/train$"),
        (lambda folder: remove(folder, "train"), False, "no folder .*/train$"),
        (lambda folder: remove(folder, "val"), False, "no folder .*/val$"),
        (lambda folder: (remove(folder, "val"), make(folder, "val")), False, "folder per class"),
        (lambda folder: make(folder, "train/empty"), True, r"train/empty: expected images .*none"),
        (lambda folder: (remove(folder, "val"), make(folder, "val/cat")), False,
         r"val: expected images .*none"),
        (lambda folder: make(folder, "val/cow"), False,
         "val/cow: 'cow' is none of the 3 classes of .*/train: Ant, cat, dog$"),
    ],
)
def test_errors(folder, change, training, message):
    change(folder)
    with pytest.raises(UserError, match=message):
        opened(folder, training)


def test_a_directory_is_needed():
    with pytest.raises(UserError, match=r"config\.data\.dir: expected the folder"):
        opened("")


def test_fingerprint_is_of_names_labels_and_number(folder):
    before = opened(folder).fingerprint
    assert re.fullmatch("[0-9a-f]{16}", before)
    moved = folder.parent / f"{folder.name} moved"
    shutil.copytree(folder, moved)
    (moved / "train/cat/b.jpg").write_bytes(b"other content, in another place")
    assert opened(moved).fingerprint == before

    def renamed(old, new):
        copy = folder.parent / f"{folder.name} renamed"
        shutil.copytree(folder, copy)
        (copy / "train" / new).parent.mkdir(exist_ok=True)
        (copy / "train" / old).rename(copy / "train" / new)
        fingerprint = opened(copy).fingerprint
        shutil.rmtree(copy)
        return fingerprint

    found = [
        renamed("cat/b.jpg", "cat/c.jpg"),  # another name
        renamed("cat/b.jpg", "Ant/b.jpg"),  # another class
        renamed("cat/b.jpg", "cat/b.txt"),  # gone
        renamed("cat", "car"),  # another class name
    ]
    assert len({before, *found}) == 5
    # The same letters, split otherwise.
    write(folder, "train/cat/x.jpg")
    one = opened(folder).fingerprint
    (folder / "train/cat/x.jpg").rename(folder / "train/cat/b.jpgx.jpg")
    (folder / "train/cat/b.jpg").unlink()
    assert opened(folder).fingerprint not in (before, one)
