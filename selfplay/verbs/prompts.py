"""`selfplay prompts`: what a file's rows become, as the model will see them, before anything is run on them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfplay.verbs import Json, emit

if TYPE_CHECKING:
    from selfplay.records import Prompt


def prompts(
    file: Annotated[
        str, typer.Argument(help="A recipe, or what `prompts.train.source` may be: a file, folder, dataset.")
    ],
    model: Annotated[
        str | None, typer.Option(help="Whose chat template and tokens to show; default a recipe's own.")
    ] = None,
    column: Annotated[str, typer.Option(help="Column with the prompt.")] = "prompt",
    split: Annotated[str, typer.Option(help="Split of a folder, a dataset or a built-in set.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="How many prompts to show.")] = 3,
    as_json: Json = False,
) -> None:
    """Show the first prompts of a file as the model will see them, and how many there are."""
    from prompts.sources import load_prompts
    from selfplay.config import PromptSource, load_recipe, validate

    if file.endswith((".yaml", ".yml")):
        recipe = load_recipe(file)
        found = load_prompts(recipe.prompts.train, recipe.seed)
        start = recipe.directory / "iteration-000" / "policy"
        model = model or recipe.policy.model or (str(start) if start.is_dir() else None)
    else:
        given = {"source": file, "split": split, "column": column}
        found = load_prompts(validate(PromptSource, given, "prompts"), 0)
    shown = preview(found, model, count)
    if as_json:
        emit(shown)
    else:
        _print(shown, file)


def preview(found: "list[Prompt]", model: str | None, count: int) -> dict[str, Any]:
    """Return how many prompts there are, and of the first `count` the text and tokens that the model sees, and their meta.

    Without a model, the turns stand under their roles.
    """
    encoded: list[list[int]] | None = None
    if model is not None:
        from selfplay.models import encode_prompt, load_tokenizer
        from selfplay.preflight import check_checkpoint

        check_checkpoint("--model", model)
        tokenizer = load_tokenizer(model)
        encoded = [encode_prompt(tokenizer, prompt) for prompt in found]
    rows = []
    for place, prompt in enumerate(found[:count]):
        turns = "\n".join(f"[{message.role}]\n{message.content}" for message in prompt.messages)
        row: dict[str, Any] = {"id": prompt.id, "text": turns, "meta": prompt.meta}
        if encoded is not None:
            row |= {"text": tokenizer.decode(encoded[place], skip_special_tokens=False), "tokens": len(encoded[place])}
        rows.append(row)
    lengths = None if encoded is None else sorted(map(len, encoded))
    return {
        "prompts": len(found),
        "model": model,
        "longest_tokens": None if lengths is None else lengths[-1],
        "median_tokens": None if lengths is None else lengths[len(lengths) // 2],
        "first": rows,
    }


def _print(shown: dict[str, Any], file: str) -> None:
    seen_by = "" if shown["model"] is None else f", as {Path(shown['model']).name} sees them"
    tokens = (
        ""
        if shown["longest_tokens"] is None
        else f"; {shown['median_tokens']} tokens in the middle, {shown['longest_tokens']} at most"
    )
    typer.echo(f"{shown['prompts']:,} prompts in {file}{seen_by}{tokens}")
    for row in shown["first"]:
        count = f", {row['tokens']} tokens" if "tokens" in row else ""
        typer.echo(f"\n--- {row['id']}{count}")
        typer.echo(row["text"])
        for key, value in row["meta"].items():
            text = " ".join(str(value).split())
            typer.echo(f"    meta.{key}: {text[:100]}{' ...' if len(text) > 100 else ''}")
    if shown["model"] is None:
        typer.echo("\nGive --model to see them in a model's chat template, with their tokens.")
