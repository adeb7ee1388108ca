"""Devices that are not there, and programs, which compile once."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from drnet_jax.devices import Program, Programs
from drnet_jax.inference.engine import predict_program
from tests import runs
from tests.tiny import mesh_of, random_batch, random_variables, tiny_drnet

FIND = """
import jax
from jax.extend import backend
from drnet_jax import devices, errors

for platforms in ("cpu", "", "cuda,cpu", "cuda", "no_such_chip,cpu"):
    backend.clear_backends()
    jax.config.update("jax_platforms", platforms)
    try:
        print(devices.found_devices())
    except errors.UserError as error:
        print("error:", error)
"""


def test_devices_that_are_not_there_are_told():
    done = runs.python(FIND, CUDA_VISIBLE_DEVICES="", TPU_SKIP_MDS_QUERY="1")
    cpu, default, fallback, cuda, unknown = done.stdout.splitlines()
    assert cpu == default == "devices: 1 x cpu"
    assert fallback == (
        "warning: devices: 1 x cpu; JAX_PLATFORMS=cuda,cpu, but JAX finds no device of 'cuda'")
    assert cuda.startswith("error: JAX_PLATFORMS=cuda: expected such devices, and JAX")
    assert "found none (none is visible); install the extra" in cuda
    assert unknown.startswith("error: JAX_PLATFORMS=no_such_chip,cpu: expected such devices")
    assert "no_such_chip" in unknown.partition("found none")[2]


def doubling(name="double", gate=None):
    """A program whose tracing waits for a gate, and how often it was traced."""
    traced = []

    def double(x):
        traced.append(threading.current_thread().name)
        if gate:
            assert gate.wait(60)
        return 2 * x

    return Program.mapped(name, mesh_of(2), double, (P("data"),), P("data")), traced


@pytest.fixture
def programs():
    found = Programs(lambda compilation: announced.append(compilation))
    announced = found.announced = []
    yield found
    found.close()


ROWS = np.arange(4.0, dtype=np.float32)


def test_a_program_compiles_once_and_says_so(programs):
    program, traced = doubling()
    for _ in range(2):
        np.testing.assert_array_equal(programs.run(program, ROWS), 2 * ROWS)
    assert len(traced) == 1
    (compilation,) = programs.announced
    assert compilation.name == "double" and compilation.waited >= compilation.seconds > 0
    assert programs.waited == compilation.waited


def test_shapes_are_enough_to_compile(programs):
    program, traced = doubling()
    programs.compile(program, jax.ShapeDtypeStruct(ROWS.shape, ROWS.dtype))
    programs.run(program, ROWS)
    assert len(traced) == 1


@pytest.fixture
def slow(programs):
    """(a program whose compilation in the background waits for a gate, its traces, the gate)."""
    gate = threading.Event()
    program, traced = doubling("slow", gate)
    programs.prepare(program, ROWS)
    yield program, traced, gate
    gate.set()


def test_the_background_compiles_while_another_program_runs(programs, slow):
    program, traced, gate = slow
    quick, _ = doubling("quick")
    programs.prepare(program, ROWS)
    np.testing.assert_array_equal(programs.run(quick, ROWS), 2 * ROWS)  # and the gate is shut
    assert [compilation.name for compilation in programs.announced] == ["quick"]
    gate.set()
    np.testing.assert_array_equal(programs.run(program, ROWS), 2 * ROWS)
    assert len(traced) == 1 and traced[0].startswith("compile")
    assert [compilation.name for compilation in programs.announced] == ["quick", "slow"]


def test_a_program_whose_turn_has_not_come_is_compiled_here(programs, slow):
    program, _, gate = slow
    wanted, traced = doubling("wanted")
    programs.prepare(wanted, ROWS)
    np.testing.assert_array_equal(programs.run(wanted, ROWS), 2 * ROWS)  # and the gate is shut
    assert traced == [threading.current_thread().name]
    assert [(each.name, each.background) for each in programs.announced] == [("wanted", False)]
    gate.set()
    programs.run(program, ROWS)
    assert programs.announced[1].background


def test_an_error_in_the_background_is_that_of_who_wants_the_program(programs):
    def fail(x):
        raise ValueError("no such program")

    program = Program.mapped("fail", mesh_of(1), fail, (P("data"),), P("data"))
    programs.prepare(program, ROWS)
    with pytest.raises(ValueError, match="no such program"):
        programs.run(program, ROWS)


def test_closing_drops_what_nobody_waits_for():
    gate, programs = threading.Event(), Programs()
    first, _ = doubling("first", gate)
    second, traced = doubling("second")
    programs.prepare(first, ROWS)
    programs.prepare(second, ROWS)
    threading.Timer(0.2, gate.set).start()
    programs.close()
    assert not traced


def test_donated_arguments_are_used_up(programs):
    program = Program.mapped(
        "add", mesh_of(2), lambda x, y: x + y, (P("data"), P("data")), P("data"), donate=(0,))
    total = programs.run(program, ROWS, ROWS)
    again = programs.run(program, total, ROWS)
    assert total.is_deleted()
    np.testing.assert_array_equal(again, 3 * ROWS)


def test_other_shapes_are_an_error_and_not_another_compilation(programs):
    program, traced = doubling()
    programs.run(program, ROWS)
    with pytest.raises(TypeError):
        programs.run(program, jnp.arange(6.0))
    assert len(traced) == 1


def test_programs_of_one_name_are_not_one_program(programs):
    """Two networks that differ only in what they compute of the predictor's logits."""
    gumbel = tiny_drnet({"router.objective": "gumbel", "budget": 0.0})
    outcome = dataclasses.replace(gumbel, scores=tiny_drnet().scores)
    mesh, images = mesh_of(2), random_batch(8)["image"]
    predictor = [{"predictor": tree["predictor"]} for tree in random_variables(gumbel)]
    found = [
        np.asarray(programs.run(predict_program(drnet, mesh, 8), *predictor, images)[0])
        for drnet in (gumbel, outcome)
    ]
    assert [compilation.name for compilation in programs.announced] == ["predict x8"] * 2
    assert np.abs(found[0] - found[1]).max() > 0.1
