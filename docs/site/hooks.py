"""What mkdocs does for this site besides turning Markdown into HTML: generated pages, and a check that nothing is remote.

`mkdocs.yml` names this file under `hooks`. A page that would load anything from the network fails the build.
"""

import re
from pathlib import Path
from typing import Any

import notebook
import recipe_reference
import remote
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files


def on_config(config: Any) -> Any:
    """Put pages that mkdocs.yml does not place under More, so that none is out of reach."""
    written = {path.relative_to(config.docs_dir).as_posix() for path in Path(config.docs_dir).rglob("*.md")}
    if left := sorted(written - set(re.findall(r"[\w/-]+\.md", str(config.nav)))):
        config.nav.append({"More": left})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made and not written: the reference of recipes, and the notebook with its outputs."""
    files.append(File.generated(config, "reference/recipe.md", content=recipe_reference.recipe_page()))
    tour = Path(config.docs_dir) / "tour.ipynb"
    files.append(File.generated(config, "tour.md", content=notebook.page(tour)))
    return files


def on_post_build(config: Any) -> None:
    """Raise PluginError if a page loads a script, a style, a font or an image from another host."""
    found = remote.remote_assets(Path(config.site_dir))
    if found:
        raise PluginError("the site loads from the network: " + "; ".join(found[:5]))
