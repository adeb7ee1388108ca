"""Each module imports only what stands to its left, and is of a readable size."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "drnet_jax").rglob("*.py"))
# Modules, and packages as one place each; what starts commands is the last.
ORDER = [
    "errors", "config", "config_check", "config_files", "formatting",
    "ops", "images", "buckets", "resolutions", "routing", "models",
    "drnet", "transfer", "products", "cost", "dial", "hosts", "devices",
    "environment", "data", "checkpoints", "weights", "graphs", "inference", "bundle", "opening",
    "evaluation", "api",
    "serve", "train", "adapt", "benchmark", "plan", "reproduce",
    "commands", "main", "__main__",
]
LINES, FUNCTION_LINES, ARGUMENTS = 300, 60, 7
# "file" or "file:function", and why it may be larger.
LARGER = {
    "evaluation/evaluate.py:evaluate": "half of it says what eval.json holds",
}


def module_of(path: Path) -> str:
    """drnet_jax/data/loader.py -> data.loader, drnet_jax/data/__init__.py -> data."""
    parts = path.relative_to(ROOT / "drnet_jax").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, wherever in it, but when run as a script."""
    tree, found = ast.parse(path.read_text()), set()
    tree.body = [node for node in tree.body if not (
        isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'")]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "drnet_jax":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("drnet_jax.")]
        else:
            continue
        found |= {name.removeprefix("drnet_jax.") for name in names}
    # `from a import b`: b is a module of a's, or a name within it.
    modules = {module_of(path) for path in FILES}
    return {name if name in modules else name.rpartition(".")[0] for name in found} - {""}


MODULES = {module_of(path): imported(path) for path in FILES}


def place(module: str) -> int:
    return ORDER.index(module.partition(".")[0])


def test_a_module_imports_only_what_stands_to_its_left():
    wrong = [
        f"{module} imports {name}" for module, names in MODULES.items() for name in sorted(names)
        # The package itself loads its door when it is first opened.
        if module and name.partition(".")[0] != module.partition(".")[0]
        and place(name) > place(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other():
    graph = {module: names - {module} for module, names in MODULES.items() if module}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, with the cycle


def functions(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            yield node


def test_modules_and_functions_are_of_a_readable_size():
    larger = {}
    for path in FILES:
        name = str(path.relative_to(ROOT / "drnet_jax"))
        lines = len(path.read_text().splitlines())
        if lines > LINES:
            larger[name] = f"{lines} lines"
        for node in functions(path):
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            taken = [argument for argument in arguments if argument.arg not in ("self", "cls")]
            if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES:
                larger[f"{name}:{node.name}"] = f"{lines} lines"
            if len(taken) > ARGUMENTS:
                larger[f"{name}:{node.name}"] = f"{len(taken)} arguments"
    unexpected = [f"{name}: {size}" for name, size in larger.items() if name not in LARGER]
    assert not unexpected, "\n".join(unexpected)
    assert LARGER.keys() <= larger.keys(), "take out what is no longer larger"


@pytest.mark.parametrize(("module", "absent"), [
    ("drnet_jax", ("jax", "tensorflow_datasets")),
    ("drnet_jax.routing", ("tensorflow_datasets", "cv2")),
])
def test_what_an_import_loads(module, absent):
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
