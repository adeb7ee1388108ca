"""Damaged checkpoints: found out and named; the newest whole one is used, or nothing."""

import random
import re
import shutil
from pathlib import Path

import pytest

from drnet_jax.checkpoints import digests
from drnet_jax.checkpoints.existing import find_checkpoint, newest, put_damaged_aside
from tests import runs

NEWEST, OLDER = 36, 35


@pytest.fixture
def workdir(finished, tmp_path):
    """A run with two checkpoints, of which the newest is about to be damaged."""
    for step in (OLDER, NEWEST):
        # Of what is in a checkpoint nothing is found by its name: a copy is one of another step.
        shutil.copytree(finished / "checkpoints" / str(NEWEST),
                        tmp_path / "run" / "checkpoints" / str(step))
    return tmp_path / "run"


def files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def test_every_bit_counts(workdir):
    """60 bits at random, of all that a checkpoint holds, each by itself."""
    checkpoint, rng = workdir / "checkpoints" / str(NEWEST), random.Random(0)
    # When it was written, which orbax adds at the very end, is nothing that is restored.
    paths = [path for path in files(checkpoint) if path.name != digests.METADATA]
    sizes = [path.stat().st_size for path in paths]
    assert digests.damage(checkpoint) is None
    for _ in range(60):
        (path,) = rng.choices(paths, sizes)
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        found = digests.damage(checkpoint)
        assert found and path.name in found, (path, found)
        path.write_bytes(whole)
    assert digests.damage(checkpoint) is None


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def turned_into_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


FILE_DAMAGES = (Path.unlink, emptied, halved, zeroed, turned_into_a_directory)
# The largest file that matches: arrays, what they are, what the checkpoint is, and its digests.
TARGETS = ("model/**/d/*", "training/**/d/*", "model/_METADATA", "meta/metadata",
           digests.METADATA, digests.FILE)
DAMAGES = [
    *((target, damage.__name__, damage) for target in TARGETS for damage in FILE_DAMAGES),
    *((item, "rmtree", shutil.rmtree) for item in ("model", "training", "meta", ".")),
]


def test_the_kinds_of_damage_are_34():
    assert len(DAMAGES) == 34


@pytest.mark.parametrize(("target", "damage"), [
    pytest.param(target, damage, id=f"{name} {target}") for target, name, damage in DAMAGES])
def test_the_newest_whole_checkpoint_is_used(workdir, capsys, target, damage):
    checkpoint = workdir / "checkpoints" / str(NEWEST)
    if damage is shutil.rmtree:
        for path in [*checkpoint.iterdir()] if target == "." else [checkpoint / target]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        damage(max(checkpoint.glob(target), key=lambda path: path.stat().st_size))
    checkpoints, step = find_checkpoint(str(workdir), "last")
    checkpoints.close()
    assert step == OLDER
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and re.match(
        f"warning: {checkpoint} is damaged: .*; using step {OLDER}\n", err)
    with pytest.raises(ValueError, match=f"{NEWEST}: expected a whole checkpoint, but ") as raised:
        find_checkpoint(str(checkpoint), "last")
    assert "\n" not in str(raised.value)
    # A run that goes on does so from there, with the damaged one out of its way.
    newest(str(workdir))
    (told,) = put_damaged_aside(str(workdir))
    assert told.startswith(f"warning: checkpoint {NEWEST} is damaged (")
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == [str(OLDER)]
    assert (workdir / "damaged" / str(NEWEST)).is_dir()


def broken(checkpoint: Path) -> None:
    halved(max(files(checkpoint), key=lambda path: path.stat().st_size))


def test_a_run_goes_on_from_the_newest_that_is_whole(images, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    broken(tmp_path / "run" / "checkpoints" / str(NEWEST))
    assert runs.call(*runs.arguments(images, tmp_path / "run")) == 0
    out = capsys.readouterr().out
    assert f"checkpoint {NEWEST} is damaged (" in out
    assert re.search(r"going on from step 3[0-5]\b", out)
    assert newest(str(tmp_path / "run")).step == NEWEST


def test_where_none_is_whole_a_run_ends_clearly(images, finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    for checkpoint in (workdir / "checkpoints").iterdir():
        broken(checkpoint)
    for command in (runs.arguments(images, workdir), ["eval", f"--workdir={workdir}"],
                    ["predict", f"--workdir={workdir}", str(images)]):
        assert runs.call(*command) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: {workdir / 'checkpoints'}: expected a whole checkpoint, ")
        assert f"{NEWEST} is damaged: " in error and "use another --workdir" in error
    assert not (workdir / "damaged").exists()
