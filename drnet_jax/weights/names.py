"""Names: the modules of networks as PyTorch's libraries call them, and as they are called here.

A table holds rules (pattern, name), of which the first counts whose pattern is the whole of a
module's name. In the name, `#1` is the number in group 1 and one more, where they count from 0 and
we from 1; and `@5` is the fifth of all blocks, where they count these throughout.
"""

import re
from collections.abc import Mapping, Sequence

Rules = tuple[tuple[str, str], ...]


def _within(there: str, here: str, modules: Mapping[str, str]) -> Rules:
    """The rules of the modules of a block, without what is before them."""
    return tuple((rf"{there}\.{name}", f"{here}/{ours}") for name, ours in modules.items())


# torchvision and timm.
RESNET: Rules = (
    (r"conv1", "stem_conv"),
    (r"bn1", "stem_norm"),
    *_within(r"layer(\d+)\.(\d+)", r"stage\1_block#2", {
        r"conv(\d)": r"conv\3",
        r"bn(\d)": r"norm\3",
        r"downsample\.0": "shortcut_conv",
        r"downsample\.1": "shortcut_norm",
    }),
    (r"fc", "head"),
)

# MobileNetV2 and EfficientNets. A first block has no expansion, and may count by that.
_TIMM: Rules = (
    (r"conv_stem", "stem_conv"),
    (r"bn1", "stem_norm"),
    *_within(r"blocks\.0\.(\d+)", r"stage1_block#1", {
        r"conv_dw": "depthwise_conv",
        r"bn1": "depthwise_norm",
        r"conv_pw": "project_conv",
        r"bn2": "project_norm",
    }),
    *_within(r"blocks\.(\d+)\.(\d+)", r"stage#1_block#2", {
        r"conv_pw": "expand_conv",
        r"bn1": "expand_norm",
        r"conv_dw": "depthwise_conv",
        r"bn2": "depthwise_norm",
        r"se\.conv_reduce": "squeeze_excite/reduce",
        r"se\.conv_expand": "squeeze_excite/expand",
        r"conv_pwl": "project_conv",
        r"bn3": "project_norm",
    }),
    (r"conv_head", "last_conv"),
    (r"bn2", "last_norm"),
    (r"classifier", "head"),
)
_TORCHVISION: Rules = (
    (r"features\.0\.0", "stem_conv"),
    (r"features\.0\.1", "stem_norm"),
    # MobileNetV2
    *_within(r"features\.1\.conv", "@1", {
        r"0\.0": "depthwise_conv",
        r"0\.1": "depthwise_norm",
        r"1": "project_conv",
        r"2": "project_norm",
    }),
    *_within(r"features\.(\d+)\.conv", r"@\1", {
        r"0\.0": "expand_conv",
        r"0\.1": "expand_norm",
        r"1\.0": "depthwise_conv",
        r"1\.1": "depthwise_norm",
        r"2": "project_conv",
        r"3": "project_norm",
    }),
    # EfficientNets
    *_within(r"features\.1\.(\d+)\.block", r"stage1_block#1", {
        r"0\.0": "depthwise_conv",
        r"0\.1": "depthwise_norm",
        r"1\.fc1": "squeeze_excite/reduce",
        r"1\.fc2": "squeeze_excite/expand",
        r"2\.0": "project_conv",
        r"2\.1": "project_norm",
    }),
    *_within(r"features\.(\d+)\.(\d+)\.block", r"stage\1_block#2", {
        r"0\.0": "expand_conv",
        r"0\.1": "expand_norm",
        r"1\.0": "depthwise_conv",
        r"1\.1": "depthwise_norm",
        r"2\.fc1": "squeeze_excite/reduce",
        r"2\.fc2": "squeeze_excite/expand",
        r"3\.0": "project_conv",
        r"3\.1": "project_norm",
    }),
    (r"features\.(?:8|18)\.0", "last_conv"),
    (r"features\.(?:8|18)\.1", "last_norm"),
    (r"classifier\.1", "head"),
)
# EfficientNet-PyTorch, and what was made after it.
_LUKEMELAS: Rules = (
    (r"_conv_stem", "stem_conv"),
    (r"_bn0", "stem_norm"),
    *_within(r"_blocks\.(\d+)", "@#1", {
        r"_expand_conv": "expand_conv",
        r"_bn0": "expand_norm",
        r"_depthwise_conv": "depthwise_conv",
        r"_bn1": "depthwise_norm",
        r"_se_reduce": "squeeze_excite/reduce",
        r"_se_expand": "squeeze_excite/expand",
        r"_project_conv": "project_conv",
        r"_bn2": "project_norm",
    }),
    (r"_conv_head", "last_conv"),
    (r"_bn1", "last_norm"),
    (r"_fc", "head"),
)
MOBILE: Rules = _TIMM + _TORCHVISION + _LUKEMELAS

# By the name of a network in `drnet_jax.models`.
RULES: dict[str, Rules] = {
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET,
    "resnet152": RESNET,
    "mobilenetv2": MOBILE,
    "efficientnet_b0": MOBILE,
    "tf_efficientnet_b0": MOBILE,
    "efficientnet_lite0": MOBILE,
    "tf_efficientnet_lite0": MOBILE,
}


def renamed(rules: Rules, module: str, blocks: Sequence[str]) -> str | None:
    """What a module is called here, None if it is unknown; `blocks` are the names of all blocks."""
    matches = ((re.fullmatch(pattern, module), name) for pattern, name in rules)
    found, name = next((match for match in matches if match[0]), (None, ""))
    if found is None:
        return None
    counted = re.sub(r"#(\d)", lambda group: str(int(found[int(group[1])]) + 1), name)
    name = found.expand(counted)
    if not name.startswith("@"):
        return name
    place, _, rest = name[1:].partition("/")
    known = dict(enumerate(blocks, 1))
    return f"{known[int(place)]}/{rest}" if int(place) in known else None
