"""What the README shows works as it is printed."""

import re
from pathlib import Path

import jax
import numpy as np

from drnet_jax.cost import model_costs
from tests.tiny import tiny_config, tiny_drnet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_network_of_your_own(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n([^`]*class SmallNet.*?)```", README, re.DOTALL)
    assert len(code.splitlines()) < 25
    (tmp_path / "my_networks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"classifier.name": "my_networks:SmallNet", "resolutions": (32, 16)}
    drnet = tiny_drnet(own)
    params, batch_stats = drnet.init(jax.random.key(0))
    # Its BatchNorms are kept once for each resolution, its convolutions once.
    assert params["norms"]["32"].keys() == params["norms"]["16"].keys()
    assert {name.split("_")[0] for name in params["norms"]["32"]} == {"BatchNorm"}
    assert {name.split("_")[0] for name in params["shared"]} == {"Conv", "Dense"}
    images = np.zeros((2, 32, 32, 3), np.uint8)
    for index in (0, 1):
        logits, moments = jax.jit(drnet.classify, static_argnums=(0, 4))(
            index, params, batch_stats, images, True)
        assert np.isfinite(logits).all()
        assert moments.keys() == batch_stats["norms"]["32"].keys()
    costs = model_costs(tiny_config(own), 7)
    assert costs.classifier[0] > costs.classifier[1] > 0


def test_files_it_names_exist():
    named = set(re.findall(r"\b(?:launch|configs|docs)/\w+\.\w+", README))
    assert {"launch/demo.sh", "launch/test.sh", "configs/folder.py"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
