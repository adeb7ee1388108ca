"""Images as a command line names them, and records of answers in a file."""

import io
import json
import tarfile

import pytest

from drnet_jax.errors import UserError
from drnet_jax.inference import inputs
from drnet_jax.inference.inputs import Item
from drnet_jax.inference.predict import Answer, Guess, Named
from drnet_jax.inference.records import Csv, JsonLines, written

ANSWERS = [
    Answer("a.jpg", "n01440764", "tench", 0.9, "classifier", 64, 100, {"64": 0.25, "32": 0.5},
           (Guess("n01440764", "tench", 0.9), Guess("b", "b", 0.1))),
    Answer('of "two"\nlines, and a comma.png', "b", "b", 1 / 3, "predictor", 16, 5,
           {"64": 0.25, "32": 0.5}, (Guess("b", "b", 1 / 3), Guess("c", "c", 0.25))),
    Answer.failed("c.jpg", "c.jpg: cannot be read"),
]


@pytest.fixture
def folder(tmp_path):
    for name in ("one.png", "sub/two.JPG", "sub/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    for name, mode in (("all.tar", "w"), ("all.tgz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as tar:
            for member in ("x/b.png", "x/a.jpg", "x/readme.md"):
                info = tarfile.TarInfo(member)
                info.size = len(member)
                tar.addfile(info, io.BytesIO(member.encode()))
    return tmp_path


def names_of(*given):
    items, _ = inputs.items_of(list(map(str, given)))
    return [item.name for item in items]


def test_files_folders_and_patterns(folder):
    both = [str(folder / "one.png"), str(folder / "sub/two.JPG")]
    assert names_of(folder / "one.png", "nowhere.png") == [both[0], "nowhere.png"]
    assert names_of(folder) == both
    assert names_of(folder / "**" / "*.[pJ]*") == both
    assert names_of(folder / "sub", folder / "one.png") == both[::-1]


@pytest.mark.parametrize("name", ["all.tar", "all.tgz"])
def test_archives_are_read_once_through(folder, name):
    tar = folder / name
    assert names_of(tar) == [f"{tar}/x/b.png", f"{tar}/x/a.jpg"]
    items, _ = inputs.items_of([str(folder / "one.png"), str(tar), str(tar)])
    found = list(inputs.read(items[:-1]))  # as of a shard
    assert found[0] == str(folder / "one.png")
    assert found[1:] == [
        Named(f"{tar}/{each}", each.encode()) for each in ("x/b.png", "x/a.jpg", "x/b.png")]


def test_a_list_on_standard_input(folder, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{folder}/one.png\r\n\n{folder}/all.tar\n-\n"))
    assert names_of("-") == [
        f"{folder}/one.png", f"{folder}/all.tar/x/b.png", f"{folder}/all.tar/x/a.jpg"]


@pytest.mark.parametrize(("name", "message"), [
    ("empty", "expected images in this folder, found none"),
    ("*.gif", "expected images in this pattern, found none"),
    ("bad.tar", "expected a whole tar archive, which this is not"),
    ("none.tar", "expected images in this archive, found none"),
    ("cut.tgz", "expected a whole tar archive, which this is not"),
])
def test_what_holds_no_images(folder, name, message):
    (folder / "empty").mkdir()
    (folder / "bad.tar").write_bytes(b"no archive" * 100)
    (folder / "cut.tgz").write_bytes((folder / "all.tgz").read_bytes()[:60])
    tarfile.open(folder / "none.tar", "w").close()
    with pytest.raises(UserError, match=message):
        inputs.items_of([str(folder / name)])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_the_shares_in_order_are_all(count):
    items = [Item(str(number)) for number in range(11)]
    shares = [inputs.share(items, f"{number + 1}/{count}") for number in range(count)]
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("which", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_no_share(which):
    with pytest.raises(UserError, match=r"--shard: expected I/N, such as 2/8, with I from 1 to N"):
        inputs.share([], which)


def write(path, form, answers, begin=True):
    with path.open("a" if not begin else "w", encoding="utf-8") as file:
        writer = JsonLines(file) if form == "json" else Csv(file, ("64", "32"), 2)
        if begin:
            writer.begin()
        for answer in answers:
            writer.write(answer)


def test_json_has_what_is_known(tmp_path):
    write(tmp_path / "out", "json", ANSWERS)
    first, second, failed = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert first == {
        "image": "a.jpg", "label": "n01440764", "name": "tench", "probability": 0.9,
        "network": "classifier", "resolution": 64, "multiply_adds": 100,
        "options": {"64": 0.25, "32": 0.5},
        "top": [{"label": "n01440764", "name": "tench", "probability": 0.9},
                {"label": "b", "name": "b", "probability": 0.1}]}
    assert second["probability"] == 0.333333
    assert failed == {"image": "c.jpg", "error": "c.jpg: cannot be read"}


def test_csv_golden(tmp_path):
    write(tmp_path / "out", "csv", ANSWERS)
    assert (tmp_path / "out").read_text() == (
        "image,label,name,probability,network,resolution,multiply_adds,option_64,option_32,"
        "label_2,name_2,probability_2,error\n"
        "a.jpg,n01440764,tench,0.9,classifier,64,100,0.25,0.5,b,b,0.1,\n"
        '"of ""two""\nlines, and a comma.png",b,b,0.333333,predictor,16,5,0.25,0.5,c,c,0.25,\n'
        "c.jpg,,,,,,,,,,,,c.jpg: cannot be read\n")


@pytest.mark.parametrize("form", ["json", "csv"])
def test_a_file_that_is_cut_anywhere_is_gone_on_with(tmp_path, form):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write(whole, form, ANSWERS)
    data, names = whole.read_bytes(), [answer.image for answer in ANSWERS]
    assert written(whole, form) == (names, len(data))
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        done, end = written(cut, form)
        assert done == names[: len(done)] and end <= length
        cut.write_bytes(data[:end])
        write(cut, form, ANSWERS[len(done) :], begin=not end)
        assert cut.read_bytes() == data


def test_another_file_is_not_gone_on_with(tmp_path):
    (tmp_path / "out").write_text("some text\n")
    with pytest.raises(UserError, match=r"expected records of drnet predict as json, found some"):
        written(tmp_path / "out", "json")
