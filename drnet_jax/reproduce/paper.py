"""Paper: the tables of section 4 as data, each row with what is printed and what measures it anew.

Figures are kept as they are printed, "25.6 M" or "76.1%", and read by `number`.
"""

import dataclasses

FIGURES = ("parameters", "multiply_adds", "saved", "top1", "top5")
UNITS = {"G": 1e9, "M": 1e6, "%": 1e-2}
NETWORKS = {"resnet50": "ResNet-50", "resnet101": "ResNet-101", "mobilenetv2": "MobileNetV2"}


@dataclasses.dataclass(frozen=True)
class Single:
    """A network trained, and tried, at one size."""

    network: str  # of NETWORKS
    images: str = "imagenet"  # or "imagenet100"
    size: int = 224  # pixels
    width: float = 1.0


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """A DRNet: stage 1, and then stage 2 with its cost regulariser."""

    network: str
    images: str = "imagenet"
    eta: float = 0.0  # weight of the regulariser (Eq. 8); 0: without it
    alpha: float = 0.0  # its target in 1e9 multiply-adds (Eq. 7), where it has one
    shared_norm: bool = False  # one set of BatchNorms for all resolutions


Experiment = Single | Dynamic


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table."""

    labels: tuple[str, ...]
    paper: tuple[str, ...]  # as printed, a figure for each of the table's columns; "-": none
    experiment: Experiment | None = None  # None: another method, quoted
    # How the experiment is tried: each image at its own resolution ("own": the base size of a
    # single one, or where the predictor sends it), or at one drawn at random, by the number of the
    # draw ("random 1"), or the mean of the draws ("random").
    policy: str = "own"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper."""

    name: str
    title: str
    labels: tuple[str, ...]  # heads of the rows' labels
    columns: dict[str, str]  # heads of the figures, as printed, and which of FIGURES each is
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()  # how we read what the paper leaves open

    def printed(self, row: Row, figure: str) -> str:
        """What the paper prints of one of FIGURES; "-" if it does not."""
        return dict(zip(self.columns.values(), row.paper, strict=True)).get(figure, "-")


def number(printed: str) -> float | None:
    """What is printed as a number: "4.1 G" -> 4.1e9, "76.1%" -> 0.761, "74.65 ± 0.04%" -> 0.7465.

    None of "-".
    """
    if printed == "-":
        return None
    value = float(printed.rstrip("GM% ").split("±")[0])
    return value * UNITS.get(printed[-1], 1)


def base(experiment: Experiment) -> Single:
    """What an experiment is compared with: the same network at the base size, at its full width."""
    return Single(experiment.network, experiment.images)


# "If we use the cross-entropy loss only" (section 3.2), in the row without hyperparameters.
NO_ALPHA = (
    "The DRNet for which the paper gives no alpha is trained here without the regulariser, eta = 0."
)
SMALL, LARGE = "imagenet100", "imagenet"
ALL, BASE = "[1x, 0.75x, 0.5x]", "[1x]"

TABLE1 = Table(
    "table1", "Results of ResNet-50 on ImageNet-100", ("Resolutions", "RA-BN"),
    {"FLOPs": "multiply_adds", "Acc": "top1"},
    (
        Row((BASE, "-"), ("4.1 G", "78.5%"), Single("resnet50", SMALL)),
        Row((ALL, "Yes"), ("3.4 G", "82.5%"), Dynamic("resnet50", SMALL)),
        Row((ALL, "Yes"), ("2.8 G", "81.4%"), Dynamic("resnet50", SMALL, 0.2, 2.5)),
        Row((ALL, "No"), ("2.9 G", "80.3%"), Dynamic("resnet50", SMALL, 0.2, 2.5, True)),
    ),
    (
        NO_ALPHA,
        "The third row has eta = 0.2 and alpha = 2.5; so has, as we read it, the fourth, whose one "
        "set of BatchNorms serves all resolutions.",
    ),
)
TABLE2 = Table(
    "table2", "Influence of FLOPs loss", ("eta", "alpha"),
    {"Average FLOPs": "multiply_adds", "Acc": "top1"},
    tuple(
        Row((f"{eta:g}", f"{alpha:.1f}"), (flops, top1), Dynamic("resnet50", SMALL, eta, alpha))
        for eta, alpha, flops, top1 in (
            (0.2, 2.0, "2.3 G", "80.6%"), (0.2, 2.5, "2.8 G", "81.4%"),
            (0.2, 3.0, "3.3 G", "82.3%"), (0.2, 3.5, "3.5 G", "82.6%"),
            (0.1, 3.0, "3.3 G", "82.1%"), (0.2, 3.0, "3.3 G", "82.3%"),
            (0.5, 3.0, "3.1 G", "81.9%"), (1.0, 3.0, "3.1 G", "81.5%"),
        )
    ),
    ("The paper's network and images are those of its Table 1.",),
)
TABLE3 = Table(
    "table3", "ResNet-50 and ResNet-101 results on the ImageNet-1K dataset", ("Model", "alpha"),
    {"Params": "parameters", "FLOPs": "multiply_adds", "↓ FLOPs": "saved", "Acc@1": "top1",
     "Acc@5": "top5"},
    (
        Row(("ResNet-50-baseline", "-"), ("25.6 M", "4.1 G", "-", "76.1%", "92.9%"),
            Single("resnet50")),
        Row(("DRNet-ResNet-50", "-"), ("30.5 M", "3.7 G", "10%", "77.5%", "93.5%"),
            Dynamic("resnet50")),
        Row(("DRNet-ResNet-50", "2.0"), ("30.5 M", "2.3 G", "44%", "75.3%", "92.2%"),
            Dynamic("resnet50", LARGE, 0.2, 2.0)),
        Row(("DRNet-ResNet-50", "2.5"), ("30.5 M", "2.7 G", "34%", "76.2%", "92.8%"),
            Dynamic("resnet50", LARGE, 0.2, 2.5)),
        Row(("DRNet-ResNet-50", "3.0"), ("30.5 M", "3.2 G", "22%", "77.0%", "93.2%"),
            Dynamic("resnet50", LARGE, 0.2, 3.0)),
        Row(("DRNet-ResNet-50", "3.5"), ("30.5 M", "3.7 G", "10%", "77.4%", "93.5%"),
            Dynamic("resnet50", LARGE, 0.2, 3.5)),
        Row(("ResNet-101-baseline", "-"), ("44.5 M", "7.8 G", "-", "77.4%", "93.5%"),
            Single("resnet101")),
        Row(("DRNet-ResNet-101", "-"), ("49.4 M", "7.0 G", "10%", "79.0%", "94.3%"),
            Dynamic("resnet101")),
    ),
    (NO_ALPHA, "With an alpha, eta = 0.2, as in the paper's Table 2."),
)
TABLE4 = Table(
    "table4", "Comparison with other model compression methods on the ImageNet-1K dataset",
    ("Model",),
    TABLE3.columns,
    (
        Row(("ResNet-50-baseline",), ("25.6 M", "4.1 G", "-", "76.1%", "92.9%"),
            Single("resnet50")),
        Row(("ResNet-50 (192x192)",), ("25.6 M", "3.0 G", "27%", "74.3%", "91.9%"),
            Single("resnet50", size=192)),
        Row(("SSS-ResNet-50",), ("-", "2.8 G", "32%", "74.2%", "91.9%")),
        Row(("Versatile-ResNet-50",), ("11.0 M", "3.0 G", "27%", "74.5%", "91.8%")),
        Row(("PFP-A-ResNet-50",), ("20.9 M", "3.7 G", "10%", "75.9%", "92.8%")),
        Row(("C-SGD70-ResNet-50",), ("-", "2.6 G", "37%", "75.3%", "92.5%")),
        Row(("DRNet-ResNet-50",), ("30.5 M", "3.7 G", "10%", "77.5%", "93.5%"),
            Dynamic("resnet50")),
        Row(("DRNet-ResNet-50 (alpha = 2.0)",), ("30.5 M", "2.3 G", "44%", "75.3%", "92.2%"),
            Dynamic("resnet50", LARGE, 0.2, 2.0)),
    ),
    (
        NO_ALPHA,
        "The other methods are quoted from the paper, not run. The network of 192x192 is trained "
        "at that size here; the paper does not say whether its own is.",
    ),
)
TABLE5 = Table(
    "table5", "Dynamic resolution vs. random resolution", ("Model",),
    {"FLOPs": "multiply_adds", "Acc": "top1"},
    (
        Row(("Random-1",), ("2.6 G", "74.70%"), Dynamic("resnet50"), "random 1"),
        Row(("Random-2",), ("2.6 G", "74.65%"), Dynamic("resnet50"), "random 2"),
        Row(("Random-3",), ("2.6 G", "74.60%"), Dynamic("resnet50"), "random 3"),
        Row(("Random (mean)",), ("2.6 G", "74.65 ± 0.04%"), Dynamic("resnet50"), "random"),
        Row(("DRNet",), ("3.7 G", "77.5%"), Dynamic("resnet50")),
    ),
    (
        NO_ALPHA,
        "Random: the same DRNet, each image at one of its resolutions, all equally likely, so that "
        "no predictor is run or paid for; three draws, their mean and standard deviation.",
    ),
)
TABLE6 = Table(
    "table6", "MobileNetV2 results on the ImageNet-1K dataset", ("Model",),
    {"Params": "parameters", "FLOPs": "multiply_adds", "↓ FLOPs": "saved", "Acc@1": "top1"},
    (
        Row(("MobileNetV2-baseline",), ("3.5 M", "300 M", "-", "71.8%"), Single("mobilenetv2")),
        Row(("MobileNetV2 (192x192)",), ("3.5 M", "221 M", "26%", "70.7%"),
            Single("mobilenetv2", size=192)),
        Row(("MobileNetV2-0.75x",), ("2.6 M", "209 M", "30%", "69.8%"),
            Single("mobilenetv2", width=0.75)),
        Row(("DRNet-MobileNetV2",), ("3.8 M", "283 M", "5%", "72.7%"), Dynamic("mobilenetv2")),
    ),
    (
        NO_ALPHA,
        "The networks of 192x192 and of width 0.75 are trained as such; the paper's figures of "
        "both are those of the authors of MobileNetV2.",
    ),
)
TABLES = {table.name: table for table in (TABLE1, TABLE2, TABLE3, TABLE4, TABLE5, TABLE6)}

# Figure 4 is of this one, and figure 1 of its stage 1, where all resolutions are trained alike.
WELL_TRAINED = Dynamic("resnet50", LARGE, 0.2, 2.5)
# Figure 3: networks of one size, and DRNets by alpha.
STATIC = (Single("resnet50"), Single("resnet50", size=192))
SWEPT = tuple(row.experiment for row in TABLE3.rows if row.experiment.network == "resnet50")[1:]

# What each needs.
NEEDS: dict[str, tuple[Experiment, ...]] = {
    **{
        name: tuple(dict.fromkeys(row.experiment for row in table.rows if row.experiment))
        for name, table in TABLES.items()
    },
    "figure1": (WELL_TRAINED,),
    "figure3": (*STATIC, *SWEPT),
    "figure4": (WELL_TRAINED,),
}
