"""Report: an evaluation as tables and sentences."""

from typing import Any

from drnet_jax.data.imagenet import class_words
from drnet_jax.formatting import interval, short, table


def text_report(report: dict[str, Any]) -> str:
    """The report as tables and sentences."""
    base = report["policies"][0]["multiply_adds"]
    options = "/".join(report["options"])
    lines = [
        f"{report['images']} images, batch size {report['batch_size']}; cost is in multiply-adds "
        "an image: the predictor's included where it runs, and of all passes of a cascade;\n"
        f"images/s are of {report['speed']['images']} images in memory",
        table([
            ("", "top-1 %", "top-5 %", "cost", "of base", "images/s", f"% by {options}"),
            *(_row(policy, base) for policy in report["policies"]),
        ]),
        "",
        *([] if report.get("predictor_trained", True) else [
            "warning: the predictor of this checkpoint is not trained: what is routed means nothing"
        ]),
        *_budget_lines(report["budget"]),
        *_router_lines(report["router"], report["options"]),
        *_ceiling_lines(report["ceilings"]),
        "",
        *_cascade_lines(report["policies"]),
        *_class_lines(report.get("classes", {})),
    ]
    if report["speed"]["differing"]:
        lines.append(
            f"warning: {report['speed']['differing']} of the {report['speed']['images']} images "
            "that were really routed were sent or answered otherwise than the table says: near "
            "ties, which batches of another make-up round otherwise"
        )
    if "at_or_above_needed_scale" in report:
        share = 100 * report["at_or_above_needed_scale"]
        lines.append(
            "sent at or above the smallest resolution known to suffice: "
            f"{share:.1f} % of what the classifier answers"
        )
    return "\n".join(lines)


def _row(policy: dict[str, Any], base: float) -> tuple[str, ...]:
    top1 = f"{100 * policy['top1']:.2f}"
    if "top1_deviation" in policy:
        top1 += f" ±{100 * policy['top1_deviation']:.2f}"
    return (
        policy["name"], top1, f"{100 * policy['top5']:.2f}", short(policy["multiply_adds"]),
        f"{policy['multiply_adds'] / base:.3f}", f"{policy['images_per_second']:.0f}",
        "/".join(f"{100 * share:.0f}" for share in policy["mix"].values()),
    )


def _budget_lines(budget: dict[str, Any]) -> list[str]:
    if not budget["target"]:
        return ["budget: none; each image goes where the predictor would send it (price 0)"]
    line = (
        f"budget: {short(budget['target'])} asked for, {short(budget['multiply_adds'])} "
        f"realised, at price {budget['price']:.4g} (found on the scores alone, without labels)"
    )
    return [line, *([f"warning: {budget['missed']}"] if "missed" in budget else [])]


def _router_lines(router: dict[str, Any], options: list[str]) -> list[str]:
    def gain(name: str, form: str) -> str:
        found = router["gains"][name]
        return interval(found["value"], *found["interval"], form)

    return [
        "routed, with 95 % intervals over images:",
        table([
            ("top-1 %", gain("top1", ".2f")),
            ("points over a random mix of the same proportions", gain("over_same_mix", "+.2f")),
            ("points over the best random mix of the same cost", gain("over_best_mix", "+.2f")),
            ("the same, of resolutions alone", gain("over_resolution_mix", "+.2f")),
            ("% of what the oracle gains over such a mix", gain("of_oracle", ".1f")),
            ("entropy of the mix in nats", f"{router['entropy']:.3f}"),
            *([("how well it foretells doubt (correlation)", f"{router['foretold']:.2f}")]
              if "foretold" in router else []),
        ]),
        "",
        table([
            ("images by cheapest right option", *(f"sent to {name}" for name in options)),
            *((name, *map(str, row))
              for name, row in zip(options, router["agreement"], strict=True)),
        ]),
        "",
    ]


def _ceiling_lines(ceilings: dict[str, float]) -> list[str]:
    return [
        f"for comparison: {100 * ceilings['foresight']:.2f} % at the cost of routing, if the "
        "predictor knew what the base would think of each answer; "
        f"{100 * ceilings['resolutions']:.2f} % of the images in memory for an oracle over the "
        f"resolutions, {100 * ceilings['mirror']:.2f} % for one over the base's answers to an "
        "image and to its mirror image, which differ by luck alone"
    ]


def _cascade_lines(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"cascade at the cost of routing: {policy['cascades']} (chosen for each half of the "
        "images by the other half)"
        for policy in rows if "cascades" in policy
    ]


def _class_lines(classes: dict[str, dict[str, Any]], shown: int = 3) -> list[str]:
    """The classes that routing finds hardest; all are in eval.json and confusion.csv."""
    if len(classes) < 2:
        return []
    worst = sorted(classes, key=lambda name: classes[name]["top1"])[:shown]
    return ["hardest classes: " + ", ".join(
        f"{words} {100 * classes[name]['top1']:.1f} % at {short(classes[name]['multiply_adds'])}"
        for name, words in zip(worst, class_words(worst), strict=True)
    )]
