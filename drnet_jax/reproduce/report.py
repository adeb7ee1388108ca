"""Report: the plan that is printed first, and the tables of what has been run so far."""

from collections.abc import Sequence

from drnet_jax.benchmark.picture import hardware
from drnet_jax.config import GIGA, Config
from drnet_jax.formatting import short
from drnet_jax.formatting import table as text_table
from drnet_jax.reproduce import estimate, results, tables
from drnet_jax.reproduce.estimate import duration
from drnet_jax.reproduce.jobs import Job
from drnet_jax.reproduce.paper import TABLES, Row, Table, base
from drnet_jax.reproduce.study import Item, Study


def plan_text(study: Study, items: Sequence[Item], jobs: int) -> str:
    """What is to be run, what is done, and how long the rest takes, with how that is known.

    Args:
        jobs: how many are run at once.
    """
    pace, done = estimate.pace(took(items)), [item for item in items if item.progress.done]
    rows = [("run", "steps", "multiply-adds", "state", "estimate")]
    for item in items:
        left = item.work.left * pace
        rows.append((
            item.job.run.name, str(item.work.steps), short(item.work.multiply_adds),
            _state(item), duration(left) if left else "",
        ))
    left = sum(item.work.left for item in items) * pace / jobs
    return "\n".join([
        f"{', '.join(study.names)}: {len(items)} runs in {study.folder}, {len(done)} done; about "
        f"{duration(left)} to go, {jobs} at once",
        text_table(rows),
        "The estimate takes the multiply-adds of training (three forward passes) at "
        f"{short(estimate.RATE)}/s, MobileNetV2's at {short(estimate.RATES['mobilenetv2'])}/s, and "
        f"{duration(estimate.BESIDES)} a run beside them, as measured on a core of an Intel Xeon; "
        + (f"times {pace:.2f}, as the {len(done)} runs done here took." if done else
           "it follows the runs here as soon as one is done."),
    ])


def _state(item: Item) -> str:
    at = item.progress
    if at.done:
        return "done"
    if at.trained:
        return "trained"
    return f"step {at.step}" if at.step else "to do"


def took(items: Sequence[Item]) -> list[tuple[float, float]]:
    """Of each job that is done the seconds it took, and those that were expected."""
    return [
        (results.read_record(item.job.workdir)["seconds"], item.work.seconds)
        for item in items if item.progress.done
    ]


def write_tables(study: Study) -> None:
    """Writes the tables that the study names, as Markdown and as CSV."""
    for name in study.names:
        if name in TABLES:
            table = TABLES[name]
            lines = [line(study, row) for row in table.rows]
            text = tables.markdown(table, lines, heading(study, table), study.scale.comparable)
            (study.folder / f"{name}.md").write_text(text)
            (study.folder / f"{name}.csv").write_text(tables.csv_text(table, lines))


def line(study: Study, row: Row) -> tables.Line:
    """A row with what is known of it now."""
    if row.experiment is None:
        return tables.Line(row, results.Figures())
    chain, compared = study.jobs[row.experiment], study.jobs[base(row.experiment)][-1]
    result, of_base = study.result(row.experiment), study.result(base(row.experiment))
    costs, base_costs = study.costs(chain[-1].config), study.costs(compared.config)
    return tables.Line(
        row, results.found(row, costs, base_costs, result), _here(chain[-1].config),
        tuple(_made(study, job) for job in chain),
        of_base and of_base.policy(f"fixed {base_costs.resolutions[0]}")["top1"],
    )


def _here(config: Config) -> str:
    """A config's network and sizes in short."""
    classifier, gumbel = config.classifier, config.router.gumbel
    parts = [
        f"{classifier.name} x {classifier.width:g}",
        f"{'/'.join(map(str, config.resolutions))} px",
    ]
    if len(config.resolutions) > 1:
        parts.append(f"eta {gumbel.eta:g}")
    if len(config.resolutions) > 1 and gumbel.eta:
        parts.append(f"alpha {short(gumbel.alpha * GIGA)}")
    return ", ".join(parts)


def _made(study: Study, job: Job) -> tables.Made:
    made = tables.Made(job.run.name, job.command, job.config.seed)
    if not study.progress(job).done:
        return made
    record = results.read_record(job.workdir)
    return tables.Made(
        made.run, made.command, made.seed, record["seconds"], hardware(record["environment"])
    )


def heading(study: Study, table: Table) -> str:
    """On what a table is made."""
    data = study.jobs[table.rows[0].experiment][-1].config.data
    images = f"the images of {data.dir}" if data.name == "folder" else data.name
    if data.classes:
        images += f", of which {data.classes}"
    if study.scale.comparable:
        return f"On {images}, with the paper's networks and sizes."
    return (
        f"On {images}, with small networks in the place of the paper's (column *here*): it is the "
        "shape of the table that can be compared, savings and accuracies over the baseline, and "
        "not the figures themselves. An alpha is the same share of the base's cost as the paper's, "
        f"an eta is {study.scale.eta:g} times the paper's."
    )
