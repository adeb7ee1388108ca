"""Four hosts with a wire between: one is killed, halted or cut off, or does not come."""

import re
import signal
import time

import pytest

from tests import runs
from tests.network import Network
from tests.processes import ended, last_line
from tests.test_end_to_end import final_parameters
from tests.tiny import assert_equal

HOSTS, SILENCE, TIMEOUT = 4, 10, 8  # hosts, and seconds
SHORT = {"resolutions": (32, 16), "pretrain.epochs": 2, "finetune.epochs": 2}


@pytest.fixture(scope="module")
def network():
    made = Network(HOSTS)
    yield made
    made.close()


@pytest.fixture
def everywhere(network):
    """Starts a command on the first so many hosts."""
    network.mend()

    def start(*flags, hosts=HOSTS):
        return [
            network.start(index, HOSTS, *flags, DRNET_HOSTS_SILENCE=str(SILENCE),
                          DRNET_HOSTS_TIMEOUT=str(TIMEOUT if hosts < HOSTS else 120))
            for index in range(hosts)
        ]

    return start


@pytest.fixture(scope="module")
def undisturbed(network, images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    running = [network.start(index, HOSTS, *runs.arguments(images, workdir, SHORT))
               for index in range(HOSTS)]
    with ended(*running):
        for each in running:
            assert each.end() == 0, each.err
    return workdir


def ends(running, lost):
    """Statuses and last lines of all but the lost one; checks that they end within the time-out."""
    began, found = time.monotonic(), {}
    for index, each in enumerate(running):
        if index != lost:
            found[index] = each.end(120), last_line(each.err)
    # Twice: what is said last may be heard late, and this machine has much else to do.
    assert time.monotonic() - began < 2 * SILENCE + 5
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("lost", [2, 0])
def test_one_is_killed_and_all_go_on(everywhere, undisturbed, images, tmp_path, lost):
    command = runs.arguments(images, tmp_path, SHORT)
    running = everywhere(*command)
    with ended(*running):
        running[0].reaches(7)
        running[lost].send(signal.SIGKILL)
        for index, (status, line) in ends(running, lost).items():
            assert status == 1
            assert line == (
                f"error: process {lost} on host{lost} is not heard of for {SILENCE} s; this one, "
                f"process {index} on host{index}, ends, too. The same command on all hosts goes on "
                "from the newest checkpoint")
    running = everywhere(*command)
    with ended(*running):
        for each in running:
            assert each.end() == 0, each.err
    assert "going on from step" in running[0].out
    assert_equal(final_parameters(tmp_path), final_parameters(undisturbed))


@pytest.mark.thorough
def test_one_is_halted(everywhere, images, tmp_path):
    running = everywhere(*runs.arguments(images, tmp_path, SHORT))
    with ended(*running):
        running[0].reaches(3)
        running[3].send(signal.SIGSTOP)
        for status, line in ends(running, 3).values():
            assert status == 1 and line.startswith("error: process 3 on host3 is not heard of ")
        running[3].send(signal.SIGCONT)
        assert running[3].end(60) == 1
        assert re.match(r"error: this process was halted for \d+ s; ", last_line(running[3].err))


def test_the_network_of_one_is_cut(everywhere, network, images, tmp_path):
    running = everywhere(*runs.arguments(images, tmp_path, SHORT))
    with ended(*running):
        running[0].reaches(3)
        network.cut(1)
        for index, (status, line) in ends(running, None).items():
            assert status == 1
            assert line.startswith(
                f"error: nothing is heard of the other processes for {SILENCE} s: the network of "
                "this host, or process 0 on host0, is gone; " if index == 1 else
                f"error: process 1 on host1 is not heard of for {SILENCE} s; ")


def test_one_does_not_come(everywhere, images, tmp_path):
    began = time.monotonic()
    running = everywhere(*runs.arguments(images, tmp_path / "run", SHORT), hosts=3)
    with ended(*running):
        for each in running:
            assert each.end(60) == 2
            assert last_line(each.err) == (
                f"error: --distributed: expected 4 processes within {TIMEOUT} s, of which 3 did "
                "not come")
    assert time.monotonic() - began < TIMEOUT + 30
    assert not (tmp_path / "run").exists()
