"""The command line: reads options, calls the API, prints what it gives back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spa import __version__
from spa.errors import UsageError
from spa.options import (
    CHOICES,
    IO_CHANGE,
    KINDS,
    MODEL,
    calibration_inputs,
    seed,
    split,
)
from spa.shell import Main, check_inputs_stay, check_outs, common, console, emit, working


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spa")
def main() -> None:
    """Make ONNX models smaller: remove whole channels, heads and units, and prove the result.

    Exit codes: 0 ok, 1 unexpected, 2 usage, 3 model unreadable or unsupported, 4 target
    unreachable, 5 validation failed.
    """


@main.command()
@click.argument("model", type=MODEL)
@click.option("-o", "--out", type=MODEL, help="Where to write; default MODEL.pruned.onnx.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
@click.option(
    "--target",
    default="macs=0.7",
    show_default=True,
    metavar="MEASURE=SHARE",
    help="The share to keep of macs, params or channels (of every group).",
)
@click.option(
    "--criterion",
    default="obspa",
    show_default=True,
    metavar="NAME",
    help=f"How units are judged: {', '.join(CHOICES['criterion'])}; see 'spa criteria'.",
)
@seed("For random scores and random inputs.")
@click.option(
    "--aggregate",
    default="mean",
    show_default=True,
    type=click.Choice(CHOICES["aggregate"]),
    help="How scores of a group's members become one.",
)
@click.option(
    "--normalize",
    default="mean",
    show_default=True,
    type=click.Choice(CHOICES["normalize"]),
    help="How scores inside a group are made to compare with other groups.",
)
@click.option(
    "--scope",
    default=None,
    type=click.Choice(CHOICES["scope"]),
    help="curves: follow error against width (the default with obspa); global: rank all units "
    "together (the default else); floor: so too, but every group keeps a quarter; erk: keep more "
    "of groups with small weights; local: take the same share of every group.",
)
@click.option(
    "--steps",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Measure and choose anew so often on the way to the target (obspa with scope curves).",
)
@click.option(
    "--exclude", multiple=True, metavar="REGEX", help="Leave these nodes, tensors (repeatable)."
)
@click.option("--only", multiple=True, metavar="REGEX", help="Prune only these (repeatable).")
@click.option(
    "--kinds",
    metavar="KIND,...",
    help=f"Which may go, of {KINDS} (whole residual branches); default all but hidden, embedding "
    "and depth.",
)
@click.option("--min-keep", default=1, show_default=True, help="Units every group keeps at least.")
@click.option(
    "--round-to",
    type=click.IntRange(1),
    metavar="N",
    help="Kept sizes are multiples of N, or untouched; default the largest of 8, 4, 2, 1 that "
    "meets the target (1 for channels), else what 1 allows below it.",
)
@click.option("--exact", is_flag=True, help="Only groups for which the law holds in value.")
@click.option(
    "--compensate",
    default="refit",
    show_default=True,
    type=click.Choice(CHOICES["compensate"]),
    help="How remaining weights make up for the removed ones; see 'spa criteria'.",
)
@click.option(
    "--repair",
    default="statistics",
    show_default=True,
    type=click.Choice(CHOICES["repair"]),
    help="Re-estimate what BatchNormalization stores, and scales of narrower layer norms.",
)
@click.option(
    "--align",
    is_flag=True,
    help="First line up what every group of a convolution or a norm, and every head, needs least.",
)
@click.option("--allow-io-change", is_flag=True, help=IO_CHANGE)
@calibration_inputs
@click.option("--plan-out", type=MODEL, help="Write the plan here.")
@click.option("--plan", "plan_in", type=MODEL, help="Replay this plan.")
@click.option("--dry-run", is_flag=True, help="Print what would be done; write no model.")
@click.option("--verify/--no-verify", default=True, help="Check the law and the drift by running.")
@common
def prune(
    model: Path,
    out: Path | None,
    force: bool,
    plan_out: Path | None,
    plan_in: Path | None,
    target: str,
    verify: bool,
    dry_run: bool,
    kinds: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Prune MODEL and write a smaller, verified file."""
    out = out or model.with_name(f"{model.name.removesuffix('.onnx')}.pruned.onnx")
    outs = ([] if dry_run else [out]) + ([plan_out] if plan_out else [])
    check_inputs_stay(outs, [model])

    from spa import api, calibration, report
    from spa.plan import Plan
    from spa.reader import data_files, load
    from spa.settings import Settings
    from spa.writer import check_writable, save, save_text

    for path in outs:
        check_writable(path)
    check_outs(outs, None if dry_run else out, force)
    if kinds is not None:
        options["kinds"] = split(kinds)
    plan = Plan.load(plan_in) if plan_in else None
    with working(quiet or as_json) as progress:
        settings = Settings(**options)
        graph = load(model)
        inputs = data_files(graph)
        check_inputs_stay(outs, [*inputs, *calibration.data_files(settings.data)])
        result = api.draft(graph, target, settings, plan=plan, progress=progress)
        check_inputs_stay(outs, calibration.data_files(result.settings.data))
        if not dry_run:
            result = api.finish(result, verify=verify, seed=settings.seed, progress=progress)
            save(result.model, out, bool(inputs), result.data, inputs)
        if plan_out:
            save_text(result.plan.to_json(), plan_out)
    if as_json:
        emit(
            {
                "model": str(model),
                "out": None if dry_run else str(out),
                **report.result_dict(result),
            }
        )
    elif not quiet:
        screen = console()
        report.print_result(screen, result, verbose or dry_run)
        written = ", ".join(map(str, outs))
        line = f"wrote {written}" if written else "dry run: nothing written"
        screen.print(line, soft_wrap=True, highlight=False)


@main.command()
@click.argument("model", type=MODEL)
@click.option("--allow-io-change", is_flag=True, help=IO_CHANGE)
@common
def analyze(model: Path, allow_io_change: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show the groups of MODEL, and what is locked and why."""
    from spa import report
    from spa.analysis import analyze as find

    with working(quiet or as_json) as progress:
        groups = find(model, allow_io_change=allow_io_change, progress=progress)
    if as_json:
        emit(report.analysis_dict(groups))
    elif not quiet:
        report.print_analysis(console(), groups, verbose)


@main.command()
@click.argument("model", type=MODEL)
@click.argument("a")
@click.argument("b")
@click.option("--allow-io-change", is_flag=True, help=IO_CHANGE)
@common
def explain(
    model: Path,
    a: str,
    b: str,
    allow_io_change: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Show by which operators two tensors, A and B, are coupled."""
    from spa.analysis import analyze as find_groups
    from spa.groups import explain as find

    groups = find_groups(model, allow_io_change=allow_io_change)
    try:
        path = find(groups, a, b)
    except KeyError as error:
        raise UsageError(
            f"the model has no tensor {error.args[0]!r}; 'spa analyze -v' lists the members"
        ) from None
    if as_json:
        steps = [{"tensor": t, "axis": k, "by": by} for (t, k), by in path.steps] if path else []
        emit({"coupled": path is not None, "units": path.units if path else 0, "steps": steps})
    elif quiet:
        return
    elif path is None:
        click.echo(f"no axis of {a!r} is coupled to an axis of {b!r}")
    else:
        for (tensor, axis), by in path.steps:
            click.echo(f"{tensor}:{axis}")
            if by:
                click.echo(f"  | {by}")
        click.echo(f"coupled in {path.units} units")


@main.command()
@click.argument("original", type=MODEL)
@click.argument("pruned", type=MODEL)
@click.option("--plan", required=True, type=MODEL, help="The plan that made PRUNED.")
@seed("For random inputs.")
@click.option(
    "--repeats",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Timed runs of each.",
)
@click.option(
    "--data",
    default="noise",
    metavar="SOURCE",
    help="The plan's inputs, where they have moved; default those that the plan names.",
)
@common
def verify(
    original: Path,
    pruned: Path,
    plan: Path,
    data: str,
    seed: int,
    repeats: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Check PRUNED against ORIGINAL: the law, drift, latency."""
    from spa import api, report

    found = api.verify(original, pruned, plan, seed=seed, repeats=repeats, data=data)
    if as_json:
        emit(found.to_dict())
    elif not quiet:
        report.print_comparison(console(), found)


@main.command()
@click.argument("model", type=MODEL)
@click.option(
    "--target",
    default="macs=0.7",
    show_default=True,
    metavar="MEASURE=SHARE,...",
    help="One or several, each as for prune.",
)
@click.option(
    "--criteria",
    "names",
    default="obspa,l1,random",
    show_default=True,
    metavar="NAME,...",
    help="Which to try; see 'spa criteria'.",
)
@calibration_inputs
@click.option("--labels", type=MODEL, help="A .npy of whole numbers, one for every sample.")
@click.option("--scope", type=click.Choice(CHOICES["scope"]), help="As for prune.")
@click.option("--kinds", metavar="KIND,...", help="As for prune.")
@seed("For random scores and random inputs.")
@click.option("--plot", type=MODEL, help="Write a chart here, as .svg.")
@common
def compare(
    model: Path,
    target: str,
    names: str,
    labels: Path | None,
    plot: Path | None,
    kinds: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Try several criteria on MODEL, side by side; write no model.

    Each is tried with compensation and without, and judged on inputs that nothing was fitted on.
    """
    check_inputs_stay([plot] if plot else [], [model, *([labels] if labels else [])])

    from spa import calibration, chart, report
    from spa.compare import compare as run
    from spa.compare import read_labels
    from spa.settings import Settings
    from spa.writer import check_writable, save_text

    if plot:
        check_writable(plot)
        check_inputs_stay([plot], calibration.data_files(options["data"]))
    if kinds is not None:
        options["kinds"] = split(kinds)
    classes = read_labels(labels) if labels else None
    with working(quiet or as_json) as progress:
        settings = Settings(**options)
        rows = run(model, split(target), split(names), settings, classes, progress=progress)
    if plot:
        save_text(chart.svg(report.points(rows)), plot)
    if as_json:
        emit({"model": str(model), "rows": [row.to_dict() for row in rows]})
    elif not quiet:
        report.print_rows(console(), rows)
        if plot:
            console().print(f"wrote {plot}", soft_wrap=True, highlight=False)


@main.command()
@common
def ops(as_json: bool, quiet: bool, verbose: bool) -> None:
    """List the operators with their rules."""
    from spa import report

    if as_json:
        emit({"rules": report.rule_rows()})
    elif not quiet:
        report.print_rules(console())


@main.command()
@common
def criteria(as_json: bool, quiet: bool, verbose: bool) -> None:
    """List criteria and compensations: what they need, their sources."""
    from spa import report

    if as_json:
        emit({"criteria": report.criterion_rows(), "compensations": report.compensation_rows()})
    elif not quiet:
        report.print_criteria(console())


@main.command()
@click.option(
    "--target", default="macs=0.7", show_default=True, metavar="MEASURE=SHARE", help="As for prune."
)
@click.option(
    "--force/--no-force", default=True, show_default=True, help="Replace files of an earlier demo."
)
@common
def demo(target: str, force: bool, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Prune the small trained model that ships with spa."""
    from spa import demo as demonstration

    found = demonstration.run(Path.cwd(), target, force)
    if as_json:
        emit(found.to_dict())
    elif not quiet:
        demonstration.show(console(), found)
