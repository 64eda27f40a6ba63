"""`selfplay chat`: talk to a checkpoint in the terminal, or through a pipe, with another beside it if wanted.

Each checkpoint hears its own earlier answers. Left out: vLLM, which takes longer to start than a chat lasts.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from selfplay.errors import ConfigError
from selfplay.records import Message, Prompt

if TYPE_CHECKING:
    from selfplay.compare.targets import Contestant
    from selfplay.config import SamplingParams
    from selfplay.engines.hf import TransformersEngine

NEW = "/new"


@dataclass
class Speaker:
    """A checkpoint and what it has been told and has answered. A model without a chat template hears one line at a time."""

    name: str
    engine: "TransformersEngine"
    turns: list[Message] = field(default_factory=list)
    said: int = 0

    def answer(self, text: str, sampling: "SamplingParams") -> Iterator[str]:
        """Say something and yield the answer piece by piece. Raises ConfigError for what does not fit the context."""
        told = [*self.turns, Message(role="user", content=text)]
        while len(told) > 1 and not self._fits(told, sampling.max_tokens):
            told = told[2:]
        prompt = Prompt(id=f"turn-{self.said}", messages=tuple(told))
        answer = ""
        for so_far in self.engine.stream_text(prompt, sampling):
            yield so_far[len(answer) :]
            answer = so_far
        self.said += 1
        if self.engine.tokenizer.chat_template:
            self.turns = [*told, Message(role="assistant", content=answer)]

    def _fits(self, told: list[Message], longest: int) -> bool:
        from selfplay.models import encode_prompt

        limit = getattr(self.engine.model.config, "max_position_embeddings", None)
        ids = encode_prompt(self.engine.tokenizer, Prompt(id="fit", messages=tuple(told)))
        return limit is None or len(ids) + longest <= limit


def chat(
    target: Annotated[str, typer.Argument(help="RUN@best, RUN@2, RUN@start, a checkpoint or a hub id.")],
    beside: Annotated[
        str | None, typer.Option(help="Who answers too: start, best or a number of the same run, or another target.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Default that of the run's recipe, or 0.7.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; default that of the run's recipe, or 256.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the answers.")] = 0,
) -> None:
    """Talk to a checkpoint, line by line. /new begins a new conversation; Ctrl-D ends."""
    from selfplay.compare.targets import recipes, resolve
    from selfplay.config import SamplingParams
    from selfplay.stages.launch import settle_libraries

    one = resolve(target)
    found = [one] if beside is None else [one, _beside(one, target, beside)]
    known = next(iter(recipes(found)), None)
    settle_libraries(known.threads if known else None)
    if temperature is None:
        temperature = known.sampling.temperature if known else 0.7
    longest = max_tokens or (known.sampling.max_tokens if known else 256)
    sampling = SamplingParams(temperature=temperature, max_tokens=longest, seed=seed)
    dtype = known.policy.dtype if known else "auto"
    _talk([_speaker(contestant, dtype) for contestant in found], sampling, sys.stdin.isatty())


def _beside(one: "Contestant", target: str, beside: str) -> "Contestant":
    """Return who answers too. Raises ConfigError for an iteration of what is not a run."""
    from selfplay.compare.targets import resolve

    if beside not in ("start", "best") and not beside.isdecimal():
        return resolve(beside)
    if one.run is None:
        raise ConfigError(
            f"--beside {beside} names an iteration of a run, and {target!r} is not a run: name a checkpoint"
        )
    return resolve(f"{one.run}@{beside}")


def _speaker(contestant: "Contestant", dtype: str) -> Speaker:
    """Load a checkpoint."""
    from selfplay.engines.hf import TransformersEngine
    from selfplay.models import load_policy, load_tokenizer

    checkpoint, revision = contestant.checkpoint, contestant.revision
    model, tokenizer = load_policy(checkpoint, revision, dtype), load_tokenizer(checkpoint, revision)
    return Speaker(contestant.name, TransformersEngine(model, tokenizer, contestant.name))


def _talk(speakers: list[Speaker], sampling: "SamplingParams", at_terminal: bool) -> None:
    """Read lines and print what each speaker answers, as it comes. Raises ConfigError, but at a terminal says it and goes on."""
    for line in _lines(at_terminal):
        if line == NEW:
            for speaker in speakers:
                speaker.turns = []
            continue
        for speaker in speakers:
            if len(speakers) > 1:
                typer.echo(f"{speaker.name}: ", nl=False)
            try:
                for piece in speaker.answer(line, sampling):
                    typer.echo(piece, nl=False)
                    sys.stdout.flush()
            except ConfigError as error:
                if not at_terminal:
                    raise
                typer.echo(f"error: {error}", err=True)
            typer.echo()


def _lines(at_terminal: bool) -> Iterator[str]:
    """Yield what is typed or piped, line by line, without empty lines."""
    if at_terminal:
        typer.echo("Ctrl-D ends, /new begins a new conversation.", err=True)
    while True:
        try:
            line = input("> " if at_terminal else "").strip()
        except EOFError:
            return
        if line:
            yield line
