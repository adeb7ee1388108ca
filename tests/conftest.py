"""Eight CPU devices for every test, `--update-golden` and `--thorough`.

With TEST_PLATFORMS=cuda,cpu the tests run where that says (launch/gpu_check.sh does so).
"""

import atexit
import os
import shutil
import tempfile

# Before anything imports jax.
os.environ["JAX_PLATFORMS"] = os.environ.get("TEST_PLATFORMS", "cpu")
# The tests compile far more than they compute: unoptimised programs take a third off their time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
# The same program is compiled once a session, in whichever test or process. Workers of pytest-xdist
# have the directory of the process that started them, which removes it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="drnet_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Else XLA logs of each program that it loads again that it does not know a feature of the machine.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import jax
import pytest
from absl import flags

from tests import runs, serving

# Accelerators would round the factors of products; references are in full float32.
jax.config.update("jax_default_matmul_precision", "highest")
# More programs in flight than cores can deadlock a collective.
jax.config.update("jax_cpu_enable_async_dispatch", False)
# Grain's worker processes read absl flags, which no test parses.
flags.FLAGS.mark_as_parsed()


def pytest_addoption(parser):
    parser.addoption(
        "--update-golden", action="store_true",
        help="rewrite tests/golden from what the code gives now, then read the difference",
    )
    parser.addoption(
        "--thorough", action="store_true",
        help="also what takes minutes, as before a release: half an hour more",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "thorough: takes minutes, and runs with --thorough only")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("thorough") and not config.getoption("--thorough"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: with --thorough only"))


@pytest.fixture
def thorough(request):
    return request.config.getoption("--thorough")


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden")


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of small images in three classes."""
    return runs.make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def finished(images, tmp_path_factory):
    """The workdir of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    status, _, err = runs.run(*runs.arguments(images, workdir))
    assert status == 0, err
    return workdir


@pytest.fixture(scope="session")
def evaluated(finished, tmp_path_factory):
    """A copy of it, evaluated in this process."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(finished, workdir)
    assert runs.call("eval", "--workdir", str(workdir)) == 0
    return workdir


@pytest.fixture(scope="module")
def server(evaluated):
    """The model as a server in a process of its own."""
    running = serving.start(evaluated)
    yield running
    serving.stop(running)
