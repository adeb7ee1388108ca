"""Lock: one run at a time writes to a workdir, and another is told which."""

import os
import re
import signal
import socket

from drnet_jax.train.lock import FILE
from tests import runs
from tests.processes import Running, ended, last_line


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(images, tmp_path, capsys):
    command = runs.arguments(images, tmp_path / "run", {
        "pretrain.epochs": 2, "finetune.epochs": 0, "resolutions": (32, 16)})
    first = Running(runs.start(*command))
    with ended(first):
        first.reaches(2)
        first.send(signal.SIGSTOP)  # else it may be over before the second has begun
        config = (tmp_path / "run" / "config.json").read_text()
        assert runs.call(*command, "--config.seed=9") == 2
        assert re.fullmatch(
            "error: --workdir: expected one that no other run writes to, received "
            f"'{tmp_path / 'run'}', to which process {first.pid} on {socket.gethostname()}, since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}, does; wait for it, stop it, or give "
            "another", last_line(capsys.readouterr().err))
        assert (tmp_path / "run" / "config.json").read_text() == config
        first.send(signal.SIGKILL)
        assert first.end() == -9
    assert str(first.pid) in (tmp_path / "run" / FILE).read_text()
    assert runs.call(*command) == 0
    assert str(os.getpid()) in (tmp_path / "run" / FILE).read_text()
