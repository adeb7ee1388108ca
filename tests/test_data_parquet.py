"""Parquet files, converted to records once: what is read, resumed and refused, and records' own."""

import fcntl
import json
import os
import pickle
import re
import resource
import shutil
import signal
import sys
from collections import namedtuple

import pytest

from drnet_jax.data import convert as module
from drnet_jax.data.convert import convert
from drnet_jax.data.imagenet import synsets
from drnet_jax.data.records import index_file, record_file, summary_file
from drnet_jax.data.sources import open_source
from drnet_jax.errors import UserError
from tests import runs
from tests.fake_imagenet import hub_names, settings, write_rows

pa = pytest.importorskip("pyarrow", reason="Parquet files are written and read by pyarrow")

NAMES = ["ant", "bee", "cat"]


def images(first, count):
    return [(f"image {at}".encode() * at, f"{at}.jpg") for at in range(first, first + count)]


@pytest.fixture
def parquet(tmp_path):
    """Two files of training, of 5 and 3 rows, and one of validation."""
    root = tmp_path / "parquet"
    write_rows(root / "train-00000-of-00002.parquet", images(1, 5), [0, 1, 2, 0, 1], NAMES)
    write_rows(root / "train-00001-of-00002.parquet", images(6, 3), [2, 2, 0], NAMES)
    write_rows(root / "validation-00000-of-00001.parquet", images(9, 2), [1, 0], NAMES)
    return root


def opened(out, training=True):
    return open_source(settings("records", out), training)


def contents(source):
    return [(source.key(at), source[at]["image"], source[at]["label"])
            for at in range(len(source))]


TRAIN = [(f"train/{at}.jpg", f"image {at}".encode() * at, label)
         for at, label in enumerate([0, 1, 2, 0, 1, 2, 2, 0], start=1)]


def test_records_are_the_images_byte_for_byte(parquet, tmp_path):
    found = convert(parquet, tmp_path / "out")
    assert (found.images, found.classes, found.notes) == (
        {"train": 8, "validation": 2}, ("ant", "bee", "cat"), ())
    train, validation = opened(tmp_path / "out"), opened(tmp_path / "out", training=False)
    assert contents(train) == TRAIN
    assert [key for key, _, _ in contents(validation)] == ["validation/9.jpg", "validation/10.jpg"]
    assert train.classes == validation.classes == ("ant", "bee", "cat") and train.notes == ()
    assert contents(pickle.loads(pickle.dumps(train))) == TRAIN
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_files_are_as_documented(parquet, tmp_path):
    convert(parquet, tmp_path)
    assert json.loads((tmp_path / "records.json").read_text()) == {
        "version": 1, "classes": NAMES, "splits": {
            "train": ["train-00000-of-00002", "train-00001-of-00002"],
            "validation": ["validation-00000-of-00001"]},
    }
    shard = "train-00001-of-00002"
    assert json.loads((tmp_path / f"{shard}.json").read_text()) == {
        "parquet": (parquet / f"{shard}.parquet").stat().st_size,
        "bytes": (tmp_path / f"{shard}.array_record").stat().st_size,
        "labels": [2, 2, 0], "names": ["6.jpg", "7.jpg", "8.jpg"],
    }


def test_a_fingerprint_is_of_names_labels_and_order(parquet, tmp_path):
    convert(parquet, tmp_path / "a")
    before = opened(tmp_path / "a").fingerprint
    assert re.fullmatch("[0-9a-f]{16}", before)
    found = [before, opened(tmp_path / "a", training=False).fingerprint]
    for number, (rows, labels) in enumerate((
        (images(6, 3), [2, 2, 1]), (images(7, 3), [2, 2, 0]), (images(6, 3)[::-1], [2, 2, 0]),
    )):
        write_rows(parquet / "train-00001-of-00002.parquet", rows, labels, NAMES)
        convert(parquet, tmp_path / str(number))
        found.append(opened(tmp_path / str(number)).fingerprint)
    assert len(set(found)) == 5


@pytest.mark.parametrize(("path", "split"), [
    ("data/train-00000-of-00001-a1b2c3.parquet", "train"),
    ("my-own-00000-of-00001.parquet", "my-own"),
    ("default/train/0000.parquet", "train"),
    ("fold/part-0.snappy.parquet", "fold"),
    ("validation.parquet", "validation"),
    ("val_3.parquet", "val"),
])
def test_names_tell_splits(tmp_path, path, split):
    write_rows(tmp_path / "parquet" / path, images(1, 2), [0, 2], NAMES)
    convert(tmp_path / "parquet", tmp_path)
    assert json.loads(summary_file(tmp_path).read_text())["splits"] == {
        split: [path.removesuffix(".parquet")]}
    assert len(open_source(settings("records", tmp_path, train_split=split), True)) == 2


def test_images_without_a_path_are_named_by_their_bytes(tmp_path):
    write_rows(tmp_path / "parquet/train/0.parquet", [(b"abc", None)], [1], NAMES)
    convert(tmp_path / "parquet", tmp_path)
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert opened(tmp_path).key(0) == f"train/{digest}"
    assert list(opened(tmp_path).index().names) == [digest]


class TestClasses:
    @staticmethod
    def of(root, labels, names, paths=None):
        rows = [(b"x", path) for path in paths or map(str, range(len(labels)))]
        write_rows(root / "parquet/train/0.parquet", rows, labels, names)
        return convert(root / "parquet", root / "out").classes

    def test_of_the_hub_are_synsets_by_their_words(self, tmp_path):
        assert self.of(tmp_path, [0], hub_names()) == tuple(synsets())

    def test_of_a_thousand_others_are_their_own(self, tmp_path):
        names = [f"class {at}" for at in range(1000)]
        assert self.of(tmp_path, [0], names) == tuple(names)

    def test_without_names_are_synsets_if_there_are_a_thousand(self, tmp_path):
        assert self.of(tmp_path, [0, 999], None) == tuple(synsets())
        with pytest.raises(UserError, match="no names of classes, and labels up to 998; write "
                           r".*/classes.txt, one name a line, in the order of the labels"):
            self.of(tmp_path / "fewer", [0, 998], None)

    def test_can_be_given(self, tmp_path):
        (tmp_path / "parquet").mkdir()
        (tmp_path / "parquet/classes.txt").write_text("dog\nelk\nfox\n")
        assert self.of(tmp_path, [0, 2], NAMES) == ("dog", "elk", "fox")

    def test_in_another_order_than_the_names_of_images_say(self, tmp_path):
        paths = ["n01440764_1_n01440764.JPEG", "n01443537_2_n01443537.JPEG"]
        with pytest.raises(UserError, match=(
            r"n01440764_1_n01440764.JPEG has label 1, which is n01443537 in the order of classes "
            "at hand; write that of these labels into classes.txt"
        )):
            self.of(tmp_path, [1, 0], hub_names(), paths)
        assert not summary_file(tmp_path / "out").exists()
        (tmp_path / "parquet/classes.txt").write_text("n01443537\nn01440764\n")
        assert self.of(tmp_path, [1, 0], hub_names(), paths) == ("n01443537", "n01440764")


def killed_in_row(parquet, out, row):
    """Converts in a process of its own, that is killed while it writes this row, from 0."""
    code = f"""
import os, signal
from pathlib import Path
from drnet_jax.data import convert

class Writer(convert.ArrayRecordWriter):
    rows = 0
    def write(self, image):
        super().write(image)
        Writer.rows += 1
        if Writer.rows > {row}:
            os.kill(os.getpid(), signal.SIGKILL)

convert.ArrayRecordWriter = Writer
convert.convert(Path({str(parquet)!r}), Path({str(out)!r}))
"""
    assert runs.python(code).returncode == -signal.SIGKILL


def test_killed_twice_a_conversion_goes_on(parquet, tmp_path, monkeypatch):
    out, converted = tmp_path / "out", []
    killed_in_row(parquet, out, 6)
    assert index_file(out, "train-00000-of-00002").exists()
    assert list(out.glob("train-00001*.partial"))
    with pytest.raises(UserError, match=r"expected records.json, which ends a conversion, but "
                       r"there is none in '.*'; drnet prepare .* or goes on with one"):
        opened(out)
    killed_in_row(parquet, out, 0)
    # As if killed between a shard and its index.
    kept = index_file(out, "train-00000-of-00002").read_bytes()

    convert_shard = module._convert
    monkeypatch.setattr(module, "_convert", lambda shard, *rest: (
        converted.append(shard.name), convert_shard(shard, *rest)))
    convert(parquet, out)
    assert converted == ["train-00001-of-00002", "validation-00000-of-00001"]
    assert index_file(out, "train-00000-of-00002").read_bytes() == kept
    assert contents(opened(out)) == TRAIN
    assert not list(out.glob("*.partial"))

    index_file(out, "train-00000-of-00002").unlink()  # as if killed just before it was written
    record_file(out, "train-00001-of-00002").write_bytes(b"copied in part")
    converted.clear()
    convert(parquet, out)
    assert converted == ["train-00000-of-00002", "train-00001-of-00002"]
    assert contents(opened(out)) == TRAIN
    converted.clear()
    convert(parquet, out)
    assert converted == []


def test_files_that_are_added_are_converted(parquet, tmp_path):
    out = tmp_path / "out"
    shutil.move(parquet / "validation-00000-of-00001.parquet", tmp_path)
    assert convert(parquet, out).images == {"train": 8}
    with pytest.raises(UserError, match="expected a split 'validation', found train"):
        opened(out, training=False)
    shutil.move(tmp_path / "validation-00000-of-00001.parquet", parquet)
    assert convert(parquet, out).images == {"train": 8, "validation": 2}
    assert len(opened(out, training=False)) == 2


def rewritten(parquet, table, name="train-00001-of-00002"):
    pa.parquet.write_table(table, parquet / f"{name}.parquet")


def image_table(struct, label=0, kind=None):
    return pa.table({"image": pa.array([struct]), "label": pa.array([label], kind)})


@pytest.mark.parametrize(("change", "message"), [
    (lambda p: shutil.rmtree(p), r"expected Parquet files \(\*.parquet\) in .*, found none"),
    (lambda p: (p / "train-00000-of-00002.parquet").unlink(),
     "expected 2 files of train, found 1; missing are train-00000-of-00002. Download them, or name "
     "those that you want otherwise, such as train/0.parquet"),
    (lambda p: write_rows(p / "train-00000-of-00002-a1.parquet", images(1, 1), [0], NAMES),
     "expected one file of this number, found .*/train-00000-of-00002-a1.parquet too"),
    (lambda p: write_rows(p / "train-00000-of-00001.parquet", images(1, 1), [0], NAMES),
     r"files of one download, found train-\*-of-00001 and train-\*-of-00002; keep one of them"),
    (lambda p: write_rows(p / "0.parquet", images(1, 1), [0], NAMES),
     r"0.parquet: expected a name that tells the split, such as"),
    (lambda p: rewritten(p, pa.table({"img": [b"x"], "label": [0]})),
     "expected a column 'image', a struct of bytes and path, and a column 'label' of integers; "
     "found img binary, label int64"),
    (lambda p: rewritten(p, image_table(b"x")), "found image binary, label int64"),
    (lambda p: rewritten(p, image_table({"bytes": "x"})), "found image struct<bytes: string>"),
    (lambda p: rewritten(p, image_table({"bytes": b"x"}, "ant")), "label string"),
    (lambda p: rewritten(p, image_table({"bytes": b"x"}, None, pa.int64())),
     "expected a label in every row, 1 have none"),
    (lambda p: (p / "train-00001-of-00002.parquet").write_bytes(b"<html>Not found</html>" * 9),
     r"train-00001-of-00002.parquet: damaged, or no Parquet file \(.*\); download it again"),
    (lambda p: write_rows(p / "train-00001-of-00002.parquet", images(1, 1), [3], NAMES),
     "expected labels from 0 to 2, received 3 in row 0"),
    (lambda p: write_rows(p / "train-00001-of-00002.parquet", images(1, 2), [1, -1], NAMES),
     "expected labels from 0 to 2, received -1 in row 1"),
    (lambda p: write_rows(p / "train-00001-of-00002.parquet", images(1, 1), [0], ["a", "b"]),
     "expected files of one data set; their classes differ"),
    (lambda p: [write_rows(f, images(1, 1), [-1], NAMES) for f in p.glob("*.parquet")],
     r"expected labels, found none \(all are -1\) in train, validation"),
])
def test_what_is_wrong_is_told_before_anything_is_written(parquet, tmp_path, change, message):
    change(parquet)
    with pytest.raises(UserError, match=message) as caught:
        convert(parquet, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_row_without_an_image_is_named(parquet, tmp_path):
    rows = [*images(1, 1), (None, "2.jpg")]
    write_rows(parquet / "train-00001-of-00002.parquet", rows, [0, 0], NAMES)
    with pytest.raises(UserError, match=r"train-00001.*: expected an image in row 1, found no"):
        convert(parquet, tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_damage_within_a_file_is_told_and_can_be_mended(parquet, tmp_path):
    path = parquet / "train-00001-of-00002.parquet"
    whole = path.read_bytes()
    path.write_bytes(bytes(100) + whole[100:])  # the footer is whole
    with pytest.raises(UserError, match=r"train-00001.*: damaged, or no Parquet file .* goes on"):
        convert(parquet, tmp_path / "out")
    path.write_bytes(whole)
    convert(parquet, tmp_path / "out")
    assert contents(opened(tmp_path / "out")) == TRAIN


def test_without_pyarrow(parquet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="^--parquet: reading Parquet needs pyarrow, which is not "
                       r"installed .*; pip install pyarrow"):
        convert(parquet, tmp_path)


def test_too_little_room_is_told_first(parquet, tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1))
    with pytest.raises(UserError, match=r"expected room for 0.0 GB, found 0.0 GB free; make room"):
        convert(parquet, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_disk_that_fills_up(parquet, tmp_path):
    write_rows(parquet / "train-00001-of-00002.parquet", [(bytes(10**6), "0.jpg")] * 2, [0, 0],
               NAMES)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))
    try:
        with pytest.raises(UserError, match=(
            r"train-00001-of-00002.array_record.partial: cannot be written \(.*File too large.*\); "
            "make room, and run the same command again, which goes on"
        )):
            convert(parquet, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").glob("*.partial"))
    assert convert(parquet, tmp_path / "out").images == {"train": 7, "validation": 2}


def test_shards_of_another_data_set_are_not_taken(parquet, tmp_path):
    convert(parquet, tmp_path / "out")
    write_rows(parquet / "train-00001-of-00002.parquet", images(1, 9), [0] * 9, NAMES)
    with pytest.raises(UserError, match=(
        r"train-00001-of-00002.array_record: made from another train-00001-of-00002.parquet, of "
        r"\d+ bytes and not \d+; use another --dir"
    )):
        convert(parquet, tmp_path / "out")


def test_one_process_converts_at_a_time(parquet, tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is converting into it"):
        convert(parquet, tmp_path)
    os.close(handle)
    convert(parquet, tmp_path)


class TestDamagedRecords:
    @pytest.fixture
    def out(self, parquet, tmp_path):
        convert(parquet, tmp_path / "out")
        return tmp_path / "out"

    @pytest.mark.parametrize(("change", "message"), [
        (lambda out: summary_file(out).unlink(), "but there is none in"),
        (lambda out: summary_file(out).write_text("{"), "but it cannot be read"),
        (lambda out: summary_file(out).write_text('{"version": 9}'),
         "expected version 1, received 9"),
        (lambda out: index_file(out, "train-00000-of-00002").unlink(),
         r"train-00000-of-00002.array_record: this shard, or train-00000-of-00002.json, cannot be"),
        (lambda out: record_file(out, "train-00001-of-00002").unlink(), "this shard, or"),
        (lambda out: record_file(out, "train-00001-of-00002").write_bytes(b"short"),
         r"expected \d+ bytes, found 5; copy it again, or run drnet prepare"),
    ])
    def test_are_told_when_they_are_opened(self, out, change, message):
        change(out)
        with pytest.raises(UserError, match=message):
            opened(out)

    def test_are_told_when_they_are_read(self, out):
        path = record_file(out, "train-00001-of-00002")
        content = bytearray(path.read_bytes())
        content[content.index(b"image 7")] ^= 255
        path.write_bytes(content)
        source = opened(out)
        with pytest.raises(UserError, match=f"^{path} is damaged .Corrupted .*; copy it again$"):
            for at in range(8):
                source[at]

    def test_need_a_directory(self):
        with pytest.raises(UserError, match="there is none in ''"):
            opened("")


class TestCommand:
    def test_converts(self, parquet, tmp_path, capsys):
        write_rows(parquet / "test-00000-of-00001.parquet", images(1, 1), [-1], NAMES)
        arguments = ("prepare", "--parquet", str(parquet), "--dir", str(tmp_path / "out"))
        assert runs.call(*arguments) == runs.call(*arguments) == 0
        assert capsys.readouterr().out == 2 * (
            f"3 classes are ready in {tmp_path}/out: train (8), validation (2)\n"
            "left out: the split test, which has no labels (all are -1)\n"
            f"train with --config.data.name=records --config.data.dir={tmp_path}/out\n"
        )

    @pytest.mark.parametrize("arguments", [
        (), ("--name", "mnist", "--parquet", "."),
    ])
    def test_wants_one_kind_of_data_set(self, capsys, arguments):
        assert runs.call("prepare", *arguments) == 2
        assert capsys.readouterr().err == (
            "error: expected one of --name and --parquet; see --help\n")

    def test_wants_a_directory(self, parquet, capsys):
        assert runs.call("prepare", "--parquet", str(parquet)) == 2
        assert capsys.readouterr().err == "error: --dir: expected a directory, received ''\n"

    def test_says_that_files_are_missing(self, tmp_path, capsys):
        arguments = "--parquet", str(tmp_path / "none"), "--dir", str(tmp_path / "out")
        assert runs.call("prepare", *arguments) == 2
        assert "expected Parquet files (*.parquet) in" in capsys.readouterr().err
