"""The command line on a folder of small images, in this process or in one of its own."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from drnet_jax import commands

REPOSITORY = Path(__file__).parents[1]
TINY = {
    "seed": 3, "batch_size": 8, "bucket_multiple": 4, "bucket_lead": 2, "log_every": 1,
    "data.threads": 2, "data.crop_area": (0.5, 1.0),
    "classifier.name": "tests.tiny:TinyNet", "classifier.width": 1.0, "resolutions": (32, 24, 16),
    "predictor.name": "tests.tiny:TinyNet", "predictor.width": 1.0, "predictor.resolution": 16,
    "budget": 5e-5, "optimizer.predictor_rate": 0.1,
    "pretrain.epochs": 3, "pretrain.warmup_epochs": 1, "pretrain.learning_rate": 0.02,
    "pretrain.distillation": 0.5,
    "finetune.epochs": 3, "finetune.warmup_epochs": 1, "finetune.learning_rate": 0.02,
    "evaluation.batch_size": 8, "checkpoint.every_steps": 4,
}


def make_images(root: Path, train: int = 16, val: int = 5, classes: int = 3) -> Path:
    """Fills root/{train,val}/<class> with noise around a hue of the class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                image = rng.integers(0, 120, (40, 44, 3), dtype=np.uint8)
                image[..., label % 3] += 100
                cv2.imwrite(str(folder / f"{index}.png"), image)
    return root


def arguments(images: Path, workdir: Path, overrides: dict | None = None) -> list[str]:
    """The command line that trains tiny networks on a folder of images."""
    values = TINY | {"data.dir": str(images)} | (overrides or {})
    return [
        "--config", str(REPOSITORY / "configs" / "folder.py"), "--workdir", str(workdir),
        *(f"--config.{key}={value}" for key, value in values.items()),
    ]


def call(*flags: str) -> int:
    """Runs a command in this process, on its eight devices; returns its exit status."""
    return commands.run(["drnet", *flags])


def start(*flags: str, devices: int = 1, **variables: str) -> subprocess.Popen:
    """Starts `python -m drnet_jax.main` on so many virtual CPU devices."""
    return subprocess.Popen(
        [sys.executable, "-m", "drnet_jax.main", *flags], text=True,
        env=environment(devices) | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a process of its own, with so many virtual CPU devices."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY),
        # Unoptimised, as in conftest.py: programs this small are mostly compilation.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
    }


def python(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs a few lines of Python in a process of their own."""
    return subprocess.run(
        [sys.executable, "-c", code], env=environment() | variables, text=True,
        capture_output=True, timeout=120,
    )


def run(*flags: str, **options) -> tuple[int, str, str]:
    """Runs it to its end: (exit status, stdout, stderr)."""
    process = start(*flags, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@contextlib.contextmanager
def socket_port():
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        yield listener.getsockname()[1]
