"""`python -m analysis report`: run folders → report.html, PNG figures, and the CSV behind each figure."""

import argparse
import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd
from tqdm import tqdm

from analysis import advice, figures, provenance, tables
from analysis.benchmark_folder import is_benchmark, section
from analysis.errors import AnalysisError
from analysis.measure import measure_runs
from analysis.run_folder import find_runs
from analysis.scaling import Experiment, efficiency_table, experiment
from analysis.sections import SECTIONS, Section

HELP = "write the scaling report of one or more runs: HTML, figures, CSV"
DESCRIPTION = """
Write a scaling report: how fast the runs are at each number of ranks, how well that scales (with 95 %
intervals), and where the time of a step goes. Folders of benchmarks (make bench and its kin) may be given
with them, and are shown at the end.

Runs with the same global batch are compared as strong scaling, runs with the same batch per rank as weak
scaling; runs that agree in both are repeats. Runs that differ in anything else that matters (settings,
versions, hardware) are refused, unless --by shows them side by side, or --allow takes them for alike.
"""
EPILOG = """
examples: python -m analysis report runs/gpt-1 runs/gpt-2 --out report
          python -m analysis report runs/none runs/int8 --by reduce.compressor --out report
          python -m analysis report runs/gpt-1 runs/gpt-2 --figures pdf --out paper
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "a run folder, a folder of run folders, or a benchmark's folder"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=what)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the report; may exist")
    parser.add_argument(
        "--figures",
        choices=[form for form in figures.FORMS if form != "png"],
        action="append",
        default=[],
        help="draw each figure so, too, beside the PNG; may be repeated",
    )
    parser.add_argument(
        "--warmup", type=int, metavar="K", help="steps of each launch to drop (default: 10 %%, 3 to 20)"
    )
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="KEY",
        help="show runs that differ in KEY, such as reduce.compressor, side by side; may be repeated",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KEY",
        help="take runs that differ in KEY for alike; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the report and print where it is.

    Raises:
        AnalysisError: from reading, or an output folder that cannot be written.
    """
    benchmarks = {path.resolve(): path for path in arguments.runs if is_benchmark(path)}.values()
    folders = [path for path in arguments.runs if not is_benchmark(path)]
    if not folders:
        raise AnalysisError(f"{arguments.runs[0]} is a benchmark's folder; give the folder of a training run with it")
    runs = find_runs(folders)
    beside = [section(path, number) for number, path in enumerate(benchmarks, 1)]
    measurements, left_out = measure_runs(runs, arguments.warmup)
    found = experiment(measurements, arguments.allow, left_out, arguments.warmup, arguments.by)
    losses, without = loss_table(runs)
    try:
        page = write(found, losses, without, arguments.out, beside, arguments.figures)
    except OSError as error:
        raise AnalysisError(f"cannot write the report to {arguments.out}: {error.strerror}") from None
    print(page)
    return 0


def loss_table(runs) -> tuple[pd.DataFrame, list[str]]:
    """Losses of all runs by step, and the names of runs that have no metrics.csv."""
    tables, without = [], []
    for one in sorted(runs, key=lambda one: one.name):
        if (one.path / "metrics.csv").exists():
            table = one.metrics()[["step", "loss", "validation_loss"]]
            table.insert(0, "run", one.name)
            tables.append(table)
        else:
            without.append(one.name)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(), without


def write(
    found: Experiment,
    losses: pd.DataFrame,
    without_losses: list[str],
    out: Path,
    beside: Sequence[Section] = (),
    forms: Sequence[str] = (),
) -> Path:
    """Write report.html and everything beside it into `out`; the same input gives the same bytes.

    Args:
        beside: sections that are not made of the runs.
        forms: of figures, besides PNG (see `figures.FORMS`).

    Returns:
        the path of report.html.
    """
    out.mkdir(parents=True, exist_ok=True)
    efficiency = efficiency_table(found.series)
    drawn = []
    made = [make(found, losses) for make in SECTIONS]
    sections = [one for one in (*made, *beside) if one is not None]
    for one in tqdm(sections, desc="drawing", unit="section", delay=3, leave=False, disable=None):
        one.table.to_csv(out / f"{one.name}.csv", index=False, lineterminator="\n")
        images = {}
        if one.plot is not None:
            images = {theme: figures.draw(one.plot, theme, one.height) for theme in ("light", "dark")}
            (out / f"{one.name}.png").write_bytes(images["light"])
            for form in forms:
                (out / f"{one.name}.{form}").write_bytes(figures.draw(one.plot, "light", one.height, form))
        drawn.append((one, {theme: base64.b64encode(image).decode() for theme, image in images.items()}))
    provenance.traces(found).to_csv(out / "traces.csv", index=False, lineterminator="\n")
    launches = provenance.launches(found)
    launches.to_csv(out / "launches.csv", index=False, lineterminator="\n")

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["cell"] = tables.number
    page = environment.get_template("report.html.jinja").render(
        experiment=found,
        sentences=advice.sentences(found, efficiency),
        sections=drawn,
        efficiency=efficiency,
        facts=provenance.facts(found),
        launches=launches,
        free=provenance.free_differences(found),
        without_losses=without_losses,
        few_repeats=min(len(cell.repeats) for cell in found.cells) < 3,
    )
    path = out / "report.html"
    path.write_text(page, encoding="utf-8")
    return path
