"""Programs compile once, here or in the background, for arguments of one shape."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from drnet_jax.devices import Program, Programs
from tests.tiny import mesh_of


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


def test_the_background_compiles_while_another_program_runs(programs):
    gate = threading.Event()
    slow, traced = doubling("slow", gate)
    quick, _ = doubling("quick")
    programs.prepare(slow, ROWS)
    programs.prepare(slow, ROWS)
    np.testing.assert_array_equal(programs.run(quick, ROWS), 2 * ROWS)  # and the gate is shut
    assert [compilation.name for compilation in programs.announced] == ["quick"]
    gate.set()
    np.testing.assert_array_equal(programs.run(slow, ROWS), 2 * ROWS)
    assert len(traced) == 1 and traced[0].startswith("compile")
    assert [compilation.name for compilation in programs.announced] == ["quick", "slow"]


def test_a_program_whose_turn_has_not_come_is_compiled_here(programs):
    gate = threading.Event()
    slow, _ = doubling("slow", gate)
    wanted, traced = doubling("wanted")
    programs.prepare(slow, ROWS)
    programs.prepare(wanted, ROWS)
    np.testing.assert_array_equal(programs.run(wanted, ROWS), 2 * ROWS)  # and the gate is shut
    assert traced == [threading.current_thread().name]
    assert [(each.name, each.background) for each in programs.announced] == [("wanted", False)]
    gate.set()
    programs.run(slow, ROWS)
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
