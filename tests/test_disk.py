"""Disks that are full, read-only or gone: one line, nothing lost, and the run goes on after."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drnet_jax.checkpoints.existing import newest
from tests import runs
from tests.processes import Running, ended, last_line
from tests.test_end_to_end import final_parameters
from tests.tiny import assert_equal

IN_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture
def mounted(tmp_path):
    """(a directory to mount on, what runs a script of bash that may mount there)."""
    place = tmp_path / "disk"
    place.mkdir()
    tried = subprocess.run([*IN_NAMESPACE, "mount", "-t", "tmpfs", "none", place])
    if tried.returncode:
        pytest.skip("needs a kernel on which anybody may mount in a namespace")

    def script(text: str) -> dict[str, tuple[int, str, str]]:
        """Runs it; of each `drnet NAME ...` in it (status, stdout, stderr)."""
        drnet = (
            f'drnet() {{ name=$1; shift; status=0; {sys.executable} -m drnet_jax.main "$@" '
            f'>{tmp_path}/$name.out 2>{tmp_path}/$name.err || status=$?; '
            f'echo $status >{tmp_path}/$name.status; }}')
        subprocess.run(
            [*IN_NAMESPACE, "bash", "-euc", f"{drnet}\n{text}"], check=True, timeout=300,
            env=runs.environment())
        return {
            path.stem: (int(path.read_text()), path.with_suffix(".out").read_text(),
                        path.with_suffix(".err").read_text())
            for path in tmp_path.glob("*.status")
        }

    return place, script


def train(images: Path, workdir: Path) -> str:
    return shlex.join(["train", *runs.arguments(images, workdir)])


def test_a_disk_that_fills_up_while_saving(images, finished, mounted, tmp_path):
    """Room for a checkpoint or two, of which three are kept; then there is more."""
    place, script = mounted
    size = sum(path.stat().st_size
               for path in (finished / "checkpoints" / "36").rglob("*") if path.is_file())
    found = script(f"""
        mount -t tmpfs -o size={int(2.5 * size) + 200_000} none {place}
        drnet full {train(images, place / "run")}
        ls {place}/run/checkpoints >{tmp_path}/left
        mount -o remount,size=100m {place}
        drnet again {train(images, place / "run")}
        cp -r {place}/run {tmp_path}/run
        cat /dev/zero >{place}/others || true
        drnet eval eval --workdir {place}/run
    """)
    status, _, err = found["full"]
    assert status == 2
    line = last_line(err)
    assert re.fullmatch("error: .*No space left on device.*[Mm]ake room.*", line)
    # Which comes first: the end of a save, or a line of metrics.
    assert f"{place / 'run' / 'checkpoints'}: " in line or "metrics.jsonl" in line
    whole = [step for step in (tmp_path / "left").read_text().split() if step.isdecimal()]
    if "checkpoint could not be written" in line:
        assert f"Whole checkpoints: {', '.join(sorted(whole, key=int))}. " in line
    assert found["again"][0] == 0, found["again"][2]
    assert_equal(final_parameters(tmp_path / "run"), final_parameters(finished))
    # What takes long is shown before it is written.
    status, out, err = found["eval"]
    assert status == 2 and "routed" in out and "fixed 32" in out
    assert re.fullmatch("error: .*No space left on device.*make room", last_line(err))


def test_a_disk_that_is_read_only(images, finished, mounted, tmp_path):
    place, script = mounted
    found = script(f"""
        mount -t tmpfs none {place}
        cp -r {finished} {place}/run
        mount -o remount,ro {place}
        drnet train {train(images, place / "run")} --config.finetune.epochs=9
        drnet new {train(images, place / "new")}
        drnet eval eval --workdir {place}/run
        drnet predict predict --workdir {place}/run {images}/val
    """)
    for name, workdir in (("train", "run"), ("new", "new"), ("eval", "run")):
        status, _, err = found[name]
        assert status == 2 and last_line(err).startswith(
            "error: --workdir: expected a directory that can be written, received "
            f"'{place / workdir}'"), err
    status, out, err = found["predict"]
    assert status == 0 and len([json.loads(line) for line in out.splitlines()]) == 15


def test_a_workdir_that_is_removed(images, tmp_path):
    workdir = tmp_path / "run"
    running = Running(runs.start(*runs.arguments(images, workdir)))
    with ended(running):
        running.reaches(6)
        shutil.rmtree(workdir, ignore_errors=True)
        assert running.end() == 2, running.err
    assert str(workdir) in last_line(running.err)
    assert newest(str(workdir)) is None
