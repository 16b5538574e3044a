"""An evaluation's report as tables in a terminal."""

from rich.markup import escape
from rich.table import Table

from maas_ray import storage
from maas_ray.evaluation.report import Comparison, Details, Interval, Report
from maas_ray.terminal.lines import new_table, say, show_table

_ROWS = 20


def show_report(report: Report, plots: list[str]) -> None:
    """Print a report without its confusion matrix, which is a plot."""
    say("")
    say(f"{report.version} on {report.dataset}/{report.split}, {report.rows:,} rows, {report.created:%Y-%m-%d %H:%M}")
    share = f"{100 * report.level:g} %"
    table = new_table("METRIC", "VALUE", f"{share} INTERVAL" if report.intervals else "")
    for name, value in report.metrics.items():
        table.add_row(name, f"{value:.4g}", _bounds(report.intervals.get(name)))
    show_table(table)
    if report.resamples:
        say(f"{report.resamples:,} bootstrap draws" + ("" if report.intervals else ", too few for intervals"))
    _show_details(report.details)
    for column in report.slices:
        _show_slices(report, column)
    if report.comparison:
        _show_comparison(report, report.comparison)
    if report.uri:
        say("")
        say(f"report  {storage.join(report.uri, 'report.json')}")
        if plots:
            say(f"plots   {', '.join(plots)}, in the same directory")


def _bounds(interval: Interval | None) -> str:
    return f"{interval[0]:.4g} to {interval[1]:.4g}" if interval else ""


def _show_details(details: Details) -> None:
    if details.by_label:
        rows = [row for row in details.by_label if row.f1 is not None] if len(details.by_label) > _ROWS else []
        rows.sort(key=lambda row: (row.f1 or 0.0, row.label))
        table = new_table("CLASS", "PRECISION", "RECALL", "F1", "ROWS")
        for row in rows[:_ROWS] or details.by_label:
            numbers = ("" if value is None else f"{value:.4f}" for value in (row.precision, row.recall, row.f1))
            table.add_row(escape(row.label), *numbers, f"{row.support:,}")
        _show(table)
        if len(rows) > _ROWS:
            say(f"the {_ROWS} classes with the lowest F1 of {len(rows):,}; the report has all")
    if details.calibration:
        say("")
        say(f"calibration: expected error {details.calibration.ece:.4f}")
    if details.residuals:
        spread = details.residuals
        say("")
        quantiles = ", ".join(f"{value:.4g}" for value in spread.quantiles.values())
        say(f"residuals: mean {spread.bias:.4g}, standard deviation {spread.std:.4g}")
        say(f"at 5, 25, 50, 75 and 95 %: {quantiles}")
    if details.residuals and details.residuals.mae_by_step:
        table = new_table("STEP AHEAD", "MEAN ABSOLUTE ERROR")
        for step, error in enumerate(details.residuals.mae_by_step[:_ROWS], start=1):
            table.add_row(str(step), f"{error:.4g}")
        _show(table)
    if details.by_position:
        table = new_table("FROM", "LOSS", "TOKENS")
        for position in details.by_position:
            table.add_row(f"{100 * position.start:.0f} %", f"{position.loss:.4f}", f"{position.tokens:,}")
        _show(table)
    if details.worst:
        table = new_table("WORD ERRORS", "SAID", "HEARD")
        for transcript in details.worst:
            table.add_row(str(transcript.word_errors), escape(transcript.reference), escape(transcript.hypothesis))
        _show(table)


def _show_slices(report: Report, column: str) -> None:
    names = list(report.metrics)
    table = new_table(escape(column), "ROWS", *names)
    for part in report.slices[column]:
        cells = []
        for name in names:
            value = f"{part.metrics[name]:.4g}" if name in part.metrics else ""
            bounds = _bounds(part.intervals.get(name))
            cells.append(f"{value} ({bounds})" if bounds else value)
        table.add_row(escape(part.value) or "(empty)", f"{part.rows:,}", *cells)
    _show(table)


def _show_comparison(report: Report, comparison: Comparison) -> None:
    table = new_table("METRIC", report.version, comparison.against, "DIFFERENCE", "INTERVAL", "P")
    for name, metric in comparison.metrics.items():
        p = "" if metric.p is None else f"{metric.p:.3g}"
        table.add_row(
            name,
            f"{metric.first:.4g}",
            f"{metric.second:.4g}",
            f"{metric.difference:+.4g}",
            _bounds(metric.interval),
            p,
        )
    _show(table)
    if comparison.mcnemar is not None:
        say(f"accuracy by McNemar's exact test: p {comparison.mcnemar:.3g}")


def _show(table: Table) -> None:
    say("")
    show_table(table)
