"""The sizes of a model, read from its `config.json`: parameters, blocks, embeddings, bytes of cache per token.

`configs/` holds the `config.json` of models that the recipes under `runs/` name, with the values that their makers publish on
the hub, so that a dry run needs no network. Left out: mixtures of experts and encoders; an unknown architecture counts as a
Llama with the same widths.
"""

from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from selfplay.config import Architecture, Bootstrap
from selfplay.storage.files import read_json
from selfplay.weights.gguf import config_of_gguf, is_gguf

CONFIGS = Path(__file__).parent / "configs"
BIASED = ("qwen2",)
"""Model types whose queries, keys and values have a bias that `config.json` does not speak of."""
NORMED_HEADS = ("qwen3",)
"""Model types that normalise each head of queries and keys."""


@dataclass(frozen=True)
class Shape:
    """Widths and counts of a decoder. Sizes are in parameters; `query` and `key` are the widths of all heads together."""

    layers: int
    hidden: int
    intermediate: int
    query: int
    key: int
    vocabulary: int
    tied: bool
    extra: int = 0
    """Biases and norms of heads, per block."""

    @property
    def block(self) -> int:
        """Return the parameters of one block: four projections of attention, three of the gated MLP, two norms."""
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.key
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden + self.extra

    @property
    def embedding(self) -> int:
        """Return the parameters of the input embedding; an output embedding that is not tied has as many."""
        return self.vocabulary * self.hidden

    @property
    def largest_matrix(self) -> int:
        """Return the parameters of the largest matrix: an embedding, or one of the MLP's or of attention's."""
        return max(self.embedding, self.hidden * max(self.intermediate, self.query))

    @property
    def body(self) -> int:
        """Return the parameters without an output embedding: what a reward model or a critic has beside its small head."""
        return self.layers * self.block + self.embedding + self.hidden

    @property
    def total(self) -> int:
        """Return all parameters of the causal language model."""
        return self.body + (0 if self.tied else self.embedding)

    def adapter(self, rank: int, targets: tuple[str, ...]) -> int:
        """Return the parameters of low-rank adapters: rank x (in + out) for each named projection of each block."""
        attention, mlp = (self.hidden, self.query, self.key), (self.hidden, self.intermediate)
        widths = {"q_proj": attention[:2], "o_proj": attention[:2], "k_proj": attention[::2], "v_proj": attention[::2]}
        widths |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), mlp)
        return self.layers * rank * sum(sum(widths.get(name, ())) for name in targets)

    def cache_per_token(self, bytes_each: int) -> int:
        """Return the bytes of keys and values of one token in all blocks."""
        return 2 * self.layers * self.key * bytes_each


def shape_of_config(config: dict[str, Any]) -> Shape:
    """Return the sizes that a `config.json` of transformers states. Raises KeyError for one without the widths of a decoder."""
    config = config.get("text_config", config)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    query, key = heads * head, (config.get("num_key_value_heads") or heads) * head
    kind = config.get("model_type")
    extra = query + 2 * key if kind in BIASED or config.get("attention_bias") else 0
    extra += hidden if config.get("attention_bias") and kind not in NORMED_HEADS else 0
    extra += 2 * config["intermediate_size"] + hidden if config.get("mlp_bias") else 0
    extra += 2 * head if kind in NORMED_HEADS else 0
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=hidden,
        intermediate=config["intermediate_size"],
        query=query,
        key=key,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", True),
        extra=extra,
    )


def shape_of_bootstrap(made: Bootstrap) -> Shape:
    """Return the sizes of the small Llama that a recipe makes itself."""
    of: Architecture = made.architecture
    return Shape(
        of.layers,
        of.hidden_size,
        of.intermediate_size,
        of.hidden_size,
        of.hidden_size,
        made.vocabulary,
        of.tie_embeddings,
    )


def find_config(model: str) -> Path | None:
    """Return the `config.json` of a checkpoint on disk, of a model shipped here, or of one in the hub's cache; no network."""
    if (Path(model) / "config.json").is_file():
        return Path(model) / "config.json"
    shipped = {file.stem.lower(): file for file in CONFIGS.glob("*.json")}
    if (file := shipped.get(known_name(model))) is not None:
        return file
    from huggingface_hub import try_to_load_from_cache

    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        return None
    cached = try_to_load_from_cache(model, "config.json")
    return Path(cached) if isinstance(cached, str) else None


def known_name(model: str) -> str:
    """Return the name under which a hub id's config would be shipped: without its owner, and `Meta-Llama` as `Llama`."""
    return model.rpartition("/")[2].lower().removeprefix("meta-")


def config_of_model(model: str) -> dict[str, Any]:
    """Return the config of a model by its path, GGUF file or hub id; empty if there is none at hand."""
    if is_gguf(model):
        return config_of_gguf(model)
    file = find_config(model)
    return {} if file is None else read_json(file)


def shape_of_model(model: str) -> Shape | None:
    """Return the sizes of a model by its path, GGUF file or hub id; None if there is no config at hand that states them."""
    try:
        shape = shape_of_config(config_of_model(model))
    except (KeyError, TypeError):
        return None
    return shape if all(isinstance(width, int) for width in astuple(shape)) else None
