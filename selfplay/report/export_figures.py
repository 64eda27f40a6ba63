"""The report's figures as files for papers: SVG always, PNG where resvg-py is installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from selfplay.errors import ConfigError
from selfplay.report.plots import all_figures
from selfplay.report.svg import Figure
from selfplay.results.load import read_run
from selfplay.storage import durable

ZOOM = 3
"""PNG pixels per drawing unit: 1,080 pixels across for a chart, 300 per inch at 9 cm."""


def save_figures(run_directory: Path, folder: Path, formats: Sequence[str] | None = None) -> list[Path]:
    """Write every figure of a run's report into `folder`; returns the paths.

    `formats` holds `svg` and `png`; by default svg, and png where resvg-py is installed. Raises ConfigError if there is
    no run, for another format, and for png without resvg-py or without any font on the machine.
    """
    if formats is None:
        formats = ("svg", "png") if find_spec("resvg_py") else ("svg",)
    for one in formats:
        if one not in ("svg", "png"):
            raise ConfigError(f"figures can be written as svg and png, not as {one!r}")
    figures = all_figures(read_run(run_directory))
    durable.make_folder(folder)
    paths = []
    for figure in figures:
        for one in formats:
            path = folder / f"{figure.name}.{one}"
            durable.write(path, figure.standalone() if one == "svg" else png(figure))
            paths.append(path)
    return paths


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG. Raises ConfigError without resvg-py, or where the machine has no font to write with."""
    try:
        import resvg_py
    except ImportError:
        raise ConfigError("PNG figures need resvg-py: `pip install resvg-py`, or write them as svg") from None
    blank = figure.standalone().replace("<text", "<desc").replace("</text>", "</desc>")
    drawn, wordless = (
        bytes(resvg_py.svg_to_bytes(svg_string=text, zoom=ZOOM)) for text in (figure.standalone(), blank)
    )
    if drawn == wordless:
        raise ConfigError(
            "this machine has no fonts, so PNG figures would have no words; install some (Debian: "
            "fonts-dejavu-core), or write the figures as svg"
        )
    return drawn
