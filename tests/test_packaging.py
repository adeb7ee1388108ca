"""What is declared against what is used, and the launchers, in copies with stand-in programs."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import drnet_jax

ROOT = Path(__file__).parent.parent
LAUNCHERS = sorted(path for path in ROOT.glob("launch/*.sh") if path.name != "env.sh")
SCRIPTS = [*LAUNCHERS, ROOT / "launch/env.sh", ROOT / ".ci/run"]

# The one module with an optional dependency, the extra `torch`.
TORCH_MODULE = "drnet_jax.benchmark.torch_baseline"

IMPORT_EVERYTHING = f"""
import importlib, pkgutil, sys

class NoTensorFlow:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise AssertionError("tensorflow is being imported")  # no `except ImportError` hides it

sys.meta_path.insert(0, NoTensorFlow())

import drnet_jax

def reraise(name):
    raise

for module in pkgutil.walk_packages(drnet_jax.__path__, "drnet_jax.", reraise):
    if module.name != {TORCH_MODULE!r}:
        importlib.import_module(module.name)
        print(module.name)
"""


WITHOUT_EXTRAS = """
import importlib, sys

class NoExtras:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoExtras())

import drnet_jax
from drnet_jax.commands import COMMANDS

for command in COMMANDS:
    importlib.import_module(f"drnet_jax.commands.{command.replace('-', '_')}")
print(drnet_jax.load)
"""


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def requirements() -> set[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    texts = [line.partition("#")[0].strip() for line in lines]
    return {canonicalize_name(Requirement(text).name) for text in texts if text}


def imports(path: Path) -> set[str]:
    """The top-level names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_no_module_imports_tensorflow():
    result = run(sys.executable, "-c", IMPORT_EVERYTHING, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert {"drnet_jax.main", "drnet_jax.train.step"} <= set(result.stdout.split())


def test_every_import_is_a_requirement():
    declared = requirements()
    distributions = importlib.metadata.packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "drnet_jax").rglob("*.py")
        for name in imports(path) - set(sys.stdlib_module_names) - {"drnet_jax"}
        if declared.isdisjoint(map(canonicalize_name, distributions.get(name, [])))
    }
    # What is imported on request, of the extras.
    assert undeclared <= {
        *(f"{TORCH_MODULE.replace('.', '/')}.py: {name}" for name in (
            "torch", "torchvision", "timm")),
        "drnet_jax/benchmark/torch_cases.py: torch", "drnet_jax/data/parquet.py: pyarrow",
        *(f"drnet_jax/graphs/{name}.py: onnx" for name in ("graph", "onnx", "operators")),
        *(f"drnet_jax/{file}.py: {name}" for file in ("inference/runtimes", "bundle/predict")
          for name in ("onnxruntime", "openvino")),
        *(f"drnet_jax/serve/{file}.py: {name}" for file, name in (
            ("app", "starlette"), ("receiving", "starlette"), ("run", "uvicorn"),
            ("metrics", "prometheus_client"))),
        *(f"drnet_jax/benchmark/plain_server.py: {name}" for name in ("starlette", "uvicorn")),
    }


def test_commands_need_no_extra_to_start():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"]
    wanted = {canonicalize_name(Requirement(text).name) for texts in extras.values()
              for text in texts}
    optional = wanted - requirements() - {"drnet-jax"}
    modules = [name for name, distributions in importlib.metadata.packages_distributions().items()
               if not optional.isdisjoint(map(canonicalize_name, distributions))]
    assert {"onnx", "onnxruntime", "openvino", "flatbuffers", "starlette"} <= set(modules)
    result = run(sys.executable, "-c", WITHOUT_EXTRAS, *modules, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_versions_agree():
    newest = re.search(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == drnet_jax.__version__


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_sound(script):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    result = run(str(shellcheck), "--external-sources", "--source-path=SCRIPTDIR", str(script))
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", [*LAUNCHERS, ROOT / ".ci/run"], ids=lambda path: path.name)
def test_script_is_executable(script):
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")


def program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


class Clone:
    """A copy of what the launchers read, whose Python only logs how it was called."""

    def __init__(self, parent: Path):
        self.parent, self.path, self.log = parent, parent / "a clone", parent / "log"
        shutil.copytree(ROOT / "launch", self.path / "launch")
        for name in ("requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.path)
        program(self.path / ".venv/bin/python", f"""
            printf '[%s]' "$@" >>'{self.log}'
            echo " in $PWD" >>'{self.log}'
            exit "${{STATUS:-0}}"
        """)

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess:
        """Runs a command from outside the clone, stand-ins in parent/bin before anything else."""
        path = f"{self.parent / 'bin'}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": str(self.parent), **variables}
        return run(*command, cwd=self.parent, env=environment)

    def launch(self, name: str, *arguments: str, **variables: str) -> list[str]:
        """Runs a launcher; returns the calls of Python that it made, each " in DIRECTORY"."""
        self.log.write_text("")
        variables = {"JAX_PLATFORMS": "cpu", **variables}
        result = self.run(f"a clone/launch/{name}", *arguments, **variables)
        assert result.returncode == int(variables.get("STATUS", 0)), result.stderr
        return self.log.read_text().splitlines()


    def installs(self, extras: str) -> list[str]:
        command = f"[-m][pip][install][--disable-pip-version-check][--editable][.{extras}]"
        return [f"{command} in {self.path}"]


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_setup_installs_once(clone):
    assert clone.launch("setup.sh") == clone.installs("")
    assert clone.launch("setup.sh") == []


def test_setup_installs_each_set_of_extras(clone):
    assert clone.launch("setup.sh", "dev") == clone.installs("[dev]")
    assert clone.launch("setup.sh", "dev", "torch") == clone.installs("[dev,torch]")
    assert clone.launch("setup.sh", "dev") == []


@pytest.mark.parametrize(
    ("platforms", "extras"), [("cuda,cpu", "[cuda]"), ("gpu", "[cuda]"), ("tpu,cpu", "[tpu]")]
)
def test_setup_adds_the_extra_of_the_platform(clone, platforms, extras):
    assert clone.launch("setup.sh", JAX_PLATFORMS=platforms) == clone.installs(extras)


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_setup_installs_again_when_what_it_reads_changed(clone, name):
    clone.launch("setup.sh")
    with (clone.path / name).open("a") as file:
        file.write("# changed\n")
    assert clone.launch("setup.sh") == clone.installs("")


def test_setup_repeats_an_installation_that_failed(clone):
    assert clone.launch("setup.sh", STATUS="1") == clone.installs("")
    assert clone.launch("setup.sh") == clone.installs("")


def test_setup_refuses_an_old_python(clone):
    shutil.rmtree(clone.path / ".venv")
    program(clone.parent / "bin/python-old", '[[ $2 == *exit* ]] && exit 1; echo "3.10"')
    result = clone.run("a clone/launch/setup.sh", PYTHON="python-old")
    assert result.returncode == 2
    assert "expected Python 3.11 or newer, received python-old (3.10)" in result.stderr
    assert not (clone.path / ".venv").exists()


def test_setup_refuses_another_python_than_the_environment_was_made_with(clone):
    program(clone.path / ".venv/bin/python", "echo 3.11")
    program(clone.parent / "bin/python-new", "echo 3.12")
    result = clone.run("a clone/launch/setup.sh", PYTHON="python-new")
    assert result.returncode == 2
    assert ".venv was made with Python 3.11 and PYTHON=python-new is another" in result.stderr


def test_demo_installs_trains_and_evaluates_where_it_was_called_from(clone):
    arguments = (
        "[--config=a clone/launch/../configs/quickstart.py][--config.data.dir=runs/data]"
        f"[--workdir=runs/demo][--config.seed=3] in {clone.parent}"
    )
    assert clone.launch("demo.sh", "--config.seed=3") == [
        *clone.installs(""),
        f"[-m][drnet_jax.main][--mode=train][--stopped_status=75]{arguments}",
        f"[-m][drnet_jax.main][--mode=eval]{arguments}",
    ]


def test_reproduce_installs_and_goes_on_where_it_was_called_from(clone):
    assert clone.launch("reproduce.sh", "all", "--workdir=runs/paper") == [
        *clone.installs(""),
        f"[-m][drnet_jax.main][reproduce][all][--workdir=runs/paper] in {clone.parent}",
    ]


def test_train_reads_paths_against_the_callers_directory(clone):
    """Python runs there; what lies in the clone is found all the same."""
    program(clone.path / ".venv/bin/python", """
        [[ $2 == pip ]] || echo "$PWD, $PYTHONPATH"
    """)
    result = clone.run("a clone/launch/train.sh", PYTHONPATH="mine", JAX_PLATFORMS="cpu")
    assert result.stdout.splitlines()[-2:] == [f"{clone.parent}, {clone.path}:mine"] * 2


def test_a_virtual_environment_is_relative_to_the_caller(clone):
    (clone.path / ".venv").rename(clone.parent / "venv")
    assert clone.launch("setup.sh", VENV="venv") == clone.installs("")


def test_train_stops_when_training_fails(clone):
    clone.launch("setup.sh")
    assert clone.launch("train.sh", STATUS="2") == [
        f"[-m][drnet_jax.main][--mode=train][--stopped_status=75] in {clone.parent}"]


@pytest.mark.parametrize(("torch", "extras"), [("", "[dev]"), ("0", "[dev]"), ("1", "[dev,torch]")])
def test_test_checks_style_then_behaviour(clone, torch, extras):
    assert clone.launch("test.sh", "-k", "a name", TORCH=torch) == [
        *clone.installs(extras), f"[-m][ruff][check][.] in {clone.path}",
        f"[-m][pytest][--numprocesses=auto][--dist=loadfile][-k][a name] in {clone.path}",
    ]


def test_gpu_check_installs_tests_and_measures(clone):
    devices, tests, benchmark = clone.launch("gpu_check.sh", "--batch=64")[1:]
    assert devices.startswith("[-c]")
    _, *files = tests.removesuffix(f" in {clone.path}").split("[-q]")[1].split("[")
    assert files and all((ROOT / file.rstrip("]")).is_file() for file in files)
    assert benchmark == (
        f"[-m][drnet_jax.benchmark][--config={clone.path}/configs/imagenet_resnet50.py]"
        "[--batch=256][--dtypes=bfloat16,float32][--out=runs/gpu_check][--batch=64] in "
        f"{clone.parent}"
    )


def test_gpu_check_does_not_check_the_cpu_in_place_of_a_gpu(clone):
    program(clone.path / ".venv/bin/python", """
        [[ $1 != -c ]] || echo "warning: devices: 1 x cpu"
        [[ $2 != pytest ]] || echo "tested"
    """)
    result = clone.run("a clone/launch/gpu_check.sh", JAX_PLATFORMS="cuda,cpu")
    assert result.returncode == 2
    assert "warning: devices: 1 x cpu" in result.stdout and "tested" not in result.stdout


def test_gpu_check_on_the_cpu_with_tiny_networks(clone):
    """The script as it is, but for the installation and short turns: tests, and a table of both
    types."""
    measure = (
        "import sys; from drnet_jax import commands; from drnet_jax.benchmark import timing; "
        'timing.TURN = 0.02; commands.main(["drnet", "benchmark", *sys.argv[1:]])'
    )
    program(clone.path / ".venv/bin/python", f"""
        case $2 in
            pip) ;;
            drnet_jax.benchmark) exec '{sys.executable}' -c '{measure}' "${{@:3}}" ;;
            *) exec '{sys.executable}' "$@" ;;
        esac
    """)
    for name in ("drnet_jax", "configs", "tests"):
        (clone.path / name).symlink_to(ROOT / name)
    result = clone.run(
        "a clone/launch/gpu_check.sh", "--batch=8", "--repeats=1", "--config.classifier.classes=3",
        "--config.classifier.name=tests.tiny:TinyPredictor", "--config.classifier.width=1.0",
        "--config.predictor.name=tests.tiny:TinyPredictor", "--config.predictor.width=1.0",
        "--config.resolutions=(16, 8)", "--config.predictor.resolution=8",
        **{name: value for name, value in os.environ.items() if name.startswith("JAX_")},
        TESTS="tests/test_report.py",
        XLA_FLAGS="--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    out = clone.parent / "runs/gpu_check"
    assert (out / "devices.txt").read_text() == "devices: 1 x cpu\n"
    assert "passed" in (out / "tests.txt").read_text()
    reports = json.loads((out / "benchmark.json").read_text())
    assert [report["config"]["dtype"] for report in reports] == ["bfloat16", "float32"]
    assert reports[0]["config"]["batch_size"] == 8
    table = (out / "benchmark.md").read_text()
    assert "on 1 x cpu" in table  # the card's name
    for dtype in ("bfloat16", "float32"):
        for case in ("training, static", "training, dense", "training, bucketed",
                     "inference, static", "inference, routed"):
            assert f"| {dtype}, {case} | " in table


def environment(clone: Clone, **variables: str) -> dict[str, str]:
    result = clone.run("bash", "-c", "source 'a clone/launch/env.sh' && env", **variables)
    return dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)


def test_environment_of_the_cpu(clone):
    values = environment(clone, JAX_PLATFORMS="cpu", MALLOC_TRIM_THRESHOLD_="7")
    assert values["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert values["MALLOC_TRIM_THRESHOLD_"] == "7"  # the caller's choice stays
    assert "JAX_COMPILATION_CACHE_DIR" not in values


def test_environment_of_a_gpu(clone):
    program(clone.parent / "bin/nvidia-smi", "echo GPU 0")
    values = environment(clone)
    assert values["JAX_PLATFORMS"] == "cuda,cpu"
    assert values["JAX_COMPILATION_CACHE_DIR"] == f"{clone.parent}/.cache/drnet_jax/xla"
    assert "GLIBC_TUNABLES" not in values
    assert environment(clone, JAX_PLATFORMS="cpu")["JAX_PLATFORMS"] == "cpu"


def test_tpu_runs_the_commit_on_a_worker_with_the_arguments_unharmed(clone):
    git = ["git", "-C", str(clone.path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "launch", "*.t*"], ["commit", "-q", "-m", "all"]):
        assert run(*git, *command).returncode == 0
    worker = clone.parent / "worker"
    worker.mkdir()
    # Copies to, and runs on, a worker whose home directory is `worker`.
    program(clone.parent / "bin/gcloud", f"""
        taken='{clone.parent}/taken'  # away, before it is trained on for the first time
        echo "$@" | head -1 >>'{clone.parent}/asked'
        case $4 in
            scp) cp "$5" '{worker}'/"${{6#slice:}}" ;;
            ssh) HOME='{worker}' bash -c "${{8#--command=}}" ;;
            describe) [[ -e $taken ]] && echo ACTIVE || echo SUSPENDED ;;
            create) touch "$taken" ;;
        esac
        [[ $4 != scp || -e $taken ]]
    """)
    program(clone.parent / "bin/python3", "exit 0")
    arguments = ["--config=configs/a.py", "--workdir=/shared/a b", "--config.data.dir=$HOME;'"]
    calls = clone.launch(
        "tpu.sh", "train", *arguments, TPU_NAME="slice", ZONE="z", TYPE="v5litepod-16", SPOT="1",
        VENV=str(clone.path / ".venv"),
    )
    flags = "[--distributed]" + "".join(f"[{argument}]" for argument in arguments)
    there = worker / "drnet_jax"
    assert calls == [
        clone.installs("[tpu]")[0].replace(str(clone.path), str(there)),
        f"[-m][drnet_jax.main][--mode=train][--stopped_status=75]{flags} in {there}",
        f"[-m][drnet_jax.main][--mode=eval]{flags} in {there}",
    ]
    asked = [line.split()[2:5] for line in (clone.parent / "asked").read_text().splitlines()]
    assert asked == [
        ["tpu-vm", "scp", asked[0][2]], ["queued-resources", "describe", "slice"],
        ["queued-resources", "delete", "slice"], ["queued-resources", "create", "slice"],
        ["queued-resources", "describe", "slice"],
        ["tpu-vm", "scp", asked[0][2]], ["tpu-vm", "ssh", "slice"]]


DRY_RUNS = {
    ("tpu.sh", "create"): [
        "gcloud compute tpus queued-resources create slice --node-id=slice "
        "--accelerator-type=v5litepod-16 --runtime-version=tpu-ubuntu2204-base --zone=z --spot "],
    ("tpu.sh", "stop"): [
        "gcloud compute tpus tpu-vm ssh slice --zone=z --worker=all "
        "--command=pkill\\ -TERM\\ -f\\ \\\"\\[d\\]rnet_jax.main\\\" "],
    ("tpu.sh", "fetch", "/shared/run", "here"): [
        "gcloud compute tpus tpu-vm scp --recurse slice:/shared/run here --zone=z --worker=0 "],
    ("tpu.sh", "delete"): [
        "gcloud compute tpus queued-resources delete slice --zone=z --force --quiet "],
    ("train.sh", "--config=a b"): [
        "{root}/launch/setup.sh ",
        "{root}/.venv/bin/python -m drnet_jax.main --mode=train --stopped_status=75 "
        "--config=a\\ b ",
        "{root}/.venv/bin/python -m drnet_jax.main --mode=eval --config=a\\ b "],
    ("slurm.sh", "--config=c"): [
        "{root}/launch/setup.sh ", "srun {root}/launch/train.sh --distributed --config=c "],
}


@pytest.mark.parametrize("words", DRY_RUNS, ids=" ".join)
def test_a_dry_run_prints_what_would_be_run(clone, words):
    name, *arguments = words
    done = clone.run(
        f"a clone/launch/{name}", *arguments, DRY_RUN="1", TPU_NAME="slice", ZONE="z",
        TYPE="v5litepod-16", SPOT="1", SLURM_SUBMIT_DIR=str(clone.path), JAX_PLATFORMS="cpu")
    quoted = str(clone.path).replace(" ", "\\ ")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        line.format(root=quoted) for line in DRY_RUNS[words]]


def test_a_job_that_slurm_stops_is_queued_again(clone):
    """By SIGTERM to the script, while it waits for what it has started."""
    program(clone.parent / "bin/srun", f"""
        trap 'echo stopped >>"{clone.log}"; exit 75' TERM
        touch '{clone.parent}/started'
        while :; do sleep 0.05; done
    """)
    program(clone.parent / "bin/scontrol", f"""echo "scontrol $@" >>'{clone.log}'""")
    process = subprocess.Popen(
        [str(clone.path / "launch/slurm.sh"), "--config=c"], env={
            "PATH": f"{clone.parent / 'bin'}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu",
            "HOME": str(clone.parent), "SLURM_SUBMIT_DIR": str(clone.path), "SLURM_JOB_ID": "7"})
    deadline = time.monotonic() + 30
    while not (clone.parent / "started").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.terminate()
    assert process.wait(30) == 75
    assert clone.log.read_text().splitlines()[-2:] == ["stopped", "scontrol requeue 7"]


# What a JobSet must have, of https://jobset.sigs.k8s.io and of Kubernetes' Job.
def test_a_manifest_for_kubernetes(clone):
    done = clone.run(
        "a clone/launch/kubernetes.sh", "--config=it's", "--workdir=/shared/a b", DRY_RUN="1",
        IMAGE="image:1", CLAIM="disk", PODS="3", GPUS="4")
    assert done.returncode == 0, done.stderr
    manifest = yaml.safe_load(done.stdout)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (train,) = manifest["spec"]["replicatedJobs"]
    job = train["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 3
    assert job["completionMode"] == "Indexed"  # else no pod knows its number
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][-2:] == ["--config=it's", "--workdir=/shared/a b"]
    variables = {each["name"]: each for each in container["env"]}
    assert variables["JAX_COORDINATOR_ADDRESS"]["value"] == "drnet-train-0-0.drnet:12321"
    assert variables["JAX_NUM_PROCESSES"]["value"] == "3"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}


def test_tpu_says_what_is_missing(clone):
    result = clone.run("a clone/launch/tpu.sh", "train", TPU_NAME="slice")
    assert result.returncode != 0
    assert "ZONE" in result.stderr
