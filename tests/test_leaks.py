"""Leaks: a long run takes no more memory, files and threads than a short one."""

import os
from pathlib import Path

from tests import runs
from tests.processes import Running, ended, steps_told

FROM = 500
POOL = "ts_pool_worker"  # TensorStore's, which fills when two are first wanted at once
# Python's pools fill in the same way; a thread left at each save or log line would be more by far.
SLACK = {"memory": 0, "files": 0, "threads": 4}


def taken(pid: int) -> dict[str, int]:
    """What a process has: kB of memory, files, threads."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "memory": int(status["VmRSS"].split()[0]), "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": sum(_name(each) != POOL for each in Path(f"/proc/{pid}/task").iterdir()),
    }


def _name(thread: Path) -> str:
    try:
        return (thread / "comm").read_text().strip()
    except OSError:  # it has ended
        return POOL


def test_nothing_grows(images, tmp_path, thorough):
    """With checkpoints, validations and log lines as they come in a run."""
    steps = 5000 if thorough else 1000
    running = Running(runs.start(*runs.arguments(images, tmp_path, {
        "log_every": 50, "checkpoint.every_steps": 250, "evaluation.every_epochs": 50,
        "resolutions": (32, 16), "pretrain.epochs": 1, "finetune.epochs": steps / 6})))
    found: dict[int, dict[str, int]] = {}

    def over() -> bool:
        told = steps_told(running.out)[-1:]
        if told and told[0] >= FROM and told[0] not in found:
            found[told[0]] = taken(running.pid)
        return told >= [steps]

    with ended(running):
        running.waits_for(over)
    # The least of some: a save has files and threads of its own, as long as it takes.
    readings = list(found.values())
    for name in readings[0]:
        early, late = (min(each[name] for each in some) for some in (readings[:5], readings[-5:]))
        assert late <= 1.02 * early + SLACK[name], (name, readings)
