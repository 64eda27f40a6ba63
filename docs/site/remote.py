"""What opening a page of the site would fetch from another host: nothing may."""

import re
from pathlib import Path

REMOTE = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preconnect|preload|icon|modulepreload))[^>]*\bhref=["']?(?:https?:)?//[^"'\s>]+""",
    re.IGNORECASE,
)
REMOTE_IN_CSS = re.compile(r"""@import\s+(?:url\()?["']?(?:https?:)?//[^"')\s]+|url\(["']?(?:https?:)?//[^"')\s]+""")


def remote_assets(folder: Path) -> list[str]:
    """Return `file: what it loads` for each thing that opening a page of the site would fetch from elsewhere."""
    found = []
    for pattern, expression in (("*.html", REMOTE), ("*.css", REMOTE_IN_CSS)):
        for path in sorted(folder.rglob(pattern)):
            text = path.read_text(encoding="utf-8")
            found += [f"{path.relative_to(folder)}: {match[0][:120]}" for match in expression.finditer(text)]
    return found
