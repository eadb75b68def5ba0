"""A picture of results; needs matplotlib (`pip install .[plots]`)."""

from pathlib import Path

from bench.results import Results

TIMES = ("us", "time bound, us")  # measured ones where there are some


def plot(results: Results, path: Path) -> None:
    """A mark for each row that has a time, case by case, with its p20 and p80 where they are known.

    Raises:
        ValueError: there is nothing to draw.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure_name = next((name for name in TIMES if any(name in row.figures for row in results.rows)), None)
    rows = sorted((row for row in results.rows if figure_name in row.figures), key=lambda row: (row.case, row.dtype))
    if figure_name is None or not rows:
        raise ValueError("no row has a time to draw")
    names = list(dict.fromkeys(row.by for row in rows))
    figure = Figure(figsize=(12, 1 + 0.25 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        value = row.figures[figure_name]
        ends = [[value - row.figures.get("p20, us", value)], [row.figures.get("p80, us", value) - value]]
        # A bar would begin where the logarithmic axis happens to: its length would say nothing.
        axes.errorbar(value, place, xerr=ends, fmt="o", color=f"C{names.index(row.by)}")
        axes.annotate(f"{value:.4g}", (value, place), (6, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=7)
    axes.set_ylim(len(rows) - 0.3, -0.7)
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.grid(alpha=0.3)
    axes.set_xlabel(f"{figure_name}, on {results.environment['device']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
