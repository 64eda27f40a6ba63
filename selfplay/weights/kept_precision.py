"""The precision that a run has chosen, as its precision.json says, and for which models it counts. Imports no torch."""

from pathlib import Path

from selfplay.storage.checksums import Damaged, read_sealed

SMALLEST_FOR_BFLOAT16 = 20_000_000
"""Parameters below which products stay float32, on a GPU too: converting costs more than it saves, and a reward model of 0.7M
parameters lost accuracy (.55 against .66)."""
WAY_OUT = (
    "put it back from a copy, or delete it to have it chosen anew: what follows may then differ in its last digits"
)


def kept_products(path: Path) -> str:
    """Return the precision that a run has chosen, from its file. Raises Damaged for what this never writes."""
    products = read_sealed(path, WAY_OUT).get("products")
    if products not in ("float32", "bfloat16"):
        raise Damaged(path, f"its `products` is {products!r}, not 'float32' or 'bfloat16'", WAY_OUT)
    return str(products)
