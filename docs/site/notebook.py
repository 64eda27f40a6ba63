"""A notebook as a page of the site: its text, its code, and what running it gave."""

import base64
import html
import json
from pathlib import Path
from typing import Any


def page(path: Path) -> str:
    """Return a notebook as Markdown with its outputs: figures as SVG or PNG inside the page, text as it was printed."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _cell(cell)) + "\n"


def _cell(cell: dict[str, Any]) -> list[str]:
    """Return one cell, then each of its outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    return [f"```python\n{source}\n```", *(shown for output in cell["outputs"] if (shown := _output(output)))]


def _output(output: dict[str, Any]) -> str:
    """Return what one output looks like; the richest form that a page can show without scripts."""
    if output["output_type"] == "stream":
        return _printed("".join(output["text"])) if output["name"] == "stdout" else ""
    if output["output_type"] == "error":
        raise ValueError(f"the notebook holds an error: {output['ename']}: {output['evalue']}")
    data = {kind: "".join(text) for kind, text in output["data"].items()}
    if "image/svg+xml" in data:
        drawing = base64.b64encode(data["image/svg+xml"].encode()).decode()  # apart, so that its style stays its own
        return f'<img class="figure" alt="figure" src="data:image/svg+xml;base64,{drawing}">'
    if "image/png" in data:
        return f'<img class="figure" alt="figure" src="data:image/png;base64,{data["image/png"].strip()}">'
    return _printed(data.get("text/plain", ""))


def _printed(text: str) -> str:
    """Return text as it was printed; no highlighting, and no markup in it."""
    return f'<pre class="output">{html.escape(text.rstrip())}</pre>' if text.strip() else ""
