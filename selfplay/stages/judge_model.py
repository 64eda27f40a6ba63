"""A judge made from text alone: a small Llama that learns to answer judge files as rules would have them answered.

The model reads the built-in stories in pairs, rendered by the judge files themselves, and learns the answer from which
such a file reads the rules' verdict. Hints at places where the judge is not listened to let it learn to look things up in
minutes: at each criterion of a sheet (see `judges.distill`), the points that the response above it earns; in that response,
at each word that stands in the columns of prompts, whether this prompt asks for it, and whether it was used before; at each
full stop, whether the sentence stood there before; behind the last sheet, who wins. How often it then agrees with the rules
on pairs that it never saw is in `judge.json`. Left out: pairs of other things than the stories, and judges that are not pairwise.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed

import judges
from judges.distill import RuleTeacher, TrainingExample, agreement, in_points
from judges.spec.base import ModelSpec
from prompts.story_pairs import story_pairs
from selfplay.config import Architecture, JudgeBootstrap
from selfplay.context import RunContext
from selfplay.engines.hf import TransformersEngine, single_tokens
from selfplay.errors import ConfigError
from selfplay.models import encode_prompt, save
from selfplay.progress import is_first, log
from selfplay.records import Completion, Pair, Prompt
from selfplay.stages.bootstrap import SPECIAL, finished_tokenizer, llama_config
from selfplay.storage.files import write_json, write_json_lines
from selfplay.training.supervised import train_supervised

SAMPLE = 2000
"""Lessons that the tokenizer is trained on."""


def fingerprint(run: RunContext, iteration: int = 0) -> str:
    """Return what the judge follows from."""
    config = bootstrap_of(run)
    specs = [judges.load_spec(config.rules), *files_of(run)]
    return run.fingerprint([config.model_dump(), [judges.digest(spec) for spec in specs]])


def run(run: RunContext, iteration: int = 0) -> None:
    """Make `iteration-000/judge`."""
    config, files = bootstrap_of(run), files_of(run)
    with run.writing(0, "judge", fingerprint(run)) as folder:
        rules = judges.load_spec(config.rules)
        model, tokenizer = taught(config, RuleTeacher(rules, files), folder / "work", run.seed("judge", "bootstrap"))
        if is_first():
            save(model, tokenizer, folder)
        engine = TransformersEngine(model, tokenizer, "judge", run.recipe.engine.batch_size)
        heldout = list(islice(pairs("heldout", run.recipe.seed), config.heldout))
        found = {
            spec.name: agreement(rules, judges.build(spec.model_copy(update={"model": "judge"}), engine), heldout)
            for spec in files
        }
        if is_first():
            told = {"parameters": model.num_parameters(), "rules": rules.name, "files": found}
            write_json(folder / "judge.json", told)
            write_json_lines(folder / "metrics.jsonl", [{"judge": name, **row} for name, row in found.items()])
    for name, row in found.items():
        log(
            f"  {name} agrees with {rules.name} on {row['agreement']:.1%} [{row['low']:.1%}, {row['high']:.1%}] of "
            f"{row['pairs']} held-out pairs, both orders on {row['swap_consistency'] or 0:.1%}"
        )


def bootstrap_of(run: RunContext) -> JudgeBootstrap:
    """Return the recipe's section. Raises ConfigError if there is none."""
    if run.recipe.judge.bootstrap is None:
        raise ConfigError("the recipe makes no judge: set judge.bootstrap")
    return run.recipe.judge.bootstrap


def files_of(run: RunContext) -> list[judges.JudgeSpec]:
    """Return the judge files that the model learns to answer, the one that labels first."""
    return [judges.load_spec(name) for name in (run.recipe.judge.file, *bootstrap_of(run).also)]


def pairs(split: str, seed: int) -> Iterator[Pair]:
    """Endless pairs of stories of one split."""
    for number, (prompt, first, second) in enumerate(story_pairs(split, seed)):
        told = [
            Completion(id=f"{prompt.id}/{place}", prompt_id=prompt.id, text=text, finish_reason="stop", policy="author")
            for place, text in enumerate((first, second))
        ]
        yield Pair(id=f"{number}|{prompt.id}", prompt=prompt, first=told[0], second=told[1])


def taught(
    config: JudgeBootstrap, teacher: RuleTeacher, work: Path, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a new model that had each lesson once. Raises ConfigError for labels that are not one token each."""
    lessons = list(islice(teacher.lessons(pairs("train", seed)), config.training.steps * config.training.batch_size))
    tokenizer = lesson_tokenizer(lessons, teacher.criteria, config.vocabulary)
    check_labels(tokenizer, teacher.files)
    rows = list(lesson_rows(tokenizer, lessons, teacher.criteria, config.architecture.context))
    model = small_llama(config.architecture, tokenizer, seed)
    log(
        f"  {model.num_parameters():,} parameters, {len(rows):,} lessons, {sum(len(row['input_ids']) for row in rows):,} tokens"
    )
    train_supervised(model, tokenizer, rows, config.training, work, seed, "teach the judge")
    return model, tokenizer


def check_labels(tokenizer: PreTrainedTokenizerBase, files: Sequence[judges.JudgeSpec]) -> None:
    """Raise ConfigError if a judge file reads a probability off a label that is not one token."""
    for output in (file.output for file in files if isinstance(file, ModelSpec) and file.output.kind == "logprob"):
        texts = output.tokens or {label: (label,) for label in output.labels or {}}
        single_tokens(tokenizer, [text for group in texts.values() for text in group])


def small_llama(architecture: Architecture, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return a new model, ready to be taught to judge."""
    set_seed(seed)
    model = LlamaForCausalLM(llama_config(architecture, tokenizer))
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    look_for_likes(model)
    return model


@torch.no_grad()
def look_for_likes(model: Any) -> None:
    """Let half of the heads of the lower layers begin with keys equal to queries, so that they attend to what is like the token.

    Whether a word is one of those asked for is then known from the first step on; with independent weights it takes a small
    model hundreds of steps to find that equal words should meet. After Trockman and Kolter 2023 ("Mimetic initialization
    of self-attention layers"), who start with query times key close to the identity.
    """
    for layer in model.model.layers[: len(model.model.layers) // 2]:
        half = layer.self_attn.q_proj.weight.shape[0] // 2
        layer.self_attn.k_proj.weight[:half] = layer.self_attn.q_proj.weight[:half]


def lesson_tokenizer(
    lessons: Sequence[TrainingExample], criteria: Sequence[str], vocabulary: int
) -> PreTrainedTokenizerBase:
    """Byte-level BPE whose tokens end with a sentence at most, so that a stock phrase is one token.

    Words of the prompts' columns, criteria and points are tokens of their own wherever they stand, and no part of others.
    """
    whole = whole_tokens(lessons, criteria)
    between = re.compile("|".join(re.escape(text) for text in sorted(whole, key=len, reverse=True)))
    texts = [text for lesson in lessons[:SAMPLE] for text in (lesson.messages[-1].content, lesson.answer)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^.\n]*[.\n]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(whole),
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator((part for text in texts for part in between.split(text)), trainer)
    tokenizer.add_tokens(whole)
    return finished_tokenizer(tokenizer)


def whole_tokens(lessons: Sequence[TrainingExample], criteria: Sequence[str]) -> list[str]:
    """Return what must be one token, with the blank before it."""
    words = {word for lesson in lessons for word in asked_for(lesson.prompt)}
    points = {earned for lesson in lessons for row in lesson.points for earned in row} | {0.0, 1.0, 2.0}
    said = {in_points(one - other) for lesson in lessons for one, other in zip(*lesson.points, strict=True)}
    return [f" {text}" for text in sorted({*words, *criteria, *said, *(f"{earned:g}" for earned in points)})]


def asked_for(prompt: Prompt) -> set[str]:
    """Return the words in the prompt's columns."""
    return {value for value in prompt.meta.values() if isinstance(value, str)}


def lesson_rows(
    tokenizer: PreTrainedTokenizerBase, lessons: Sequence[TrainingExample], criteria: Sequence[str], longest: int
) -> Iterator[dict[str, list[int]]]:
    """Question, answer and end as ids; the labels are the answer's, and hints in the question. Too long ones are left out."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    texts = {number: tokenizer.decode([number]) for number in vocabulary.values()}
    sheet = [vocabulary[f" {name}"] for name in criteria]
    words = {vocabulary[f" {word}"]: word for lesson in lessons for word in asked_for(lesson.prompt)}
    for lesson in lessons:
        ids = encode_prompt(tokenizer, Prompt(id="lesson", messages=lesson.messages))
        answer = [*tokenizer(lesson.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) + len(answer) > longest:
            continue
        hints: dict[int, str] = {}
        question = tokenizer(lesson.prompt.text, add_special_tokens=False)["input_ids"]
        begin = next((place + len(question) for place in places_of(question, ids)), 0)
        for place, points in zip(places_of(sheet, ids)[-len(lesson.points) :], lesson.points, strict=False):
            hints |= {end: f" {again:g}" for end, again in repeats(ids, range(begin, place), texts).items()}
            hints |= {
                at: f" {used:g}" for at, used in uses(ids, range(begin, place), words, asked_for(lesson.prompt)).items()
            }
            hints |= {place + number: f" {earned:g}" for number, earned in enumerate(points)}
            begin = place + len(sheet)
        if hints:
            hints |= dict.fromkeys(range(begin, len(ids) - 1), lesson.winner)
        labels = [-100, *(vocabulary[hints[place]] if place in hints else -100 for place in range(len(ids) - 1))]
        yield {"input_ids": ids + answer, "labels": labels + answer}


def uses(ids: Sequence[int], places: range, words: Mapping[int, str], wanted: set[str]) -> dict[int, int]:
    """Place of each word of the prompts' columns -> 1 if this prompt asks for it and it is new, 2 if it is used again, else 0."""
    return {
        place: 0 if words[ids[place]] not in wanted else 2 if ids[place] in ids[places.start : place] else 1
        for place in places
        if ids[place] in words
    }


def repeats(ids: Sequence[int], places: range, texts: Mapping[int, str]) -> dict[int, int]:
    """Place of each sentence's full stop -> 1 if the sentence stood there before, else 0."""
    found: dict[int, int] = {}
    told: list[str] = []
    sentence = ""
    for place in places:
        sentence += texts[ids[place]]
        if sentence.strip() == ".":  # behind the sheet of the response before
            sentence = ""
        elif sentence.endswith("."):
            found[place] = int(
                any(before.endswith(sentence.strip()) for before in told)
            )  # the first has a label before it
            told.append(sentence)
            sentence = ""
    return found


def places_of(part: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Return where a run of tokens begins in others."""
    return [place for place in range(len(ids) - len(part)) if list(ids[place : place + len(part)]) == list(part)]
