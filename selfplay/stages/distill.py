"""`selfplay judge distill`: a small local model that judges as another judge does, taught on that judge's verdicts.

The teacher is any judge that can be asked: rules, a jury, a hosted model. It is asked about pairs once, through a cache; the
pairs that it decides are dealt by their prompts into those that teach and those that measure. The student answers a pairwise
judge file: a checkpoint that is fine-tuned, or a new small Llama with a tokenizer of its own, which is enough for texts as
plain as the built-in stories. Left out: reasons, of which the student learns none, and ties, which teach nothing.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import judges
from judges.audit.compare import JudgeComparison, compare_judges
from judges.audit.gold import GoldPair, prompt_of
from judges.build import Opener
from judges.distill import TrainingExample, VerdictTeacher, decided_by
from judges.llm.cache import AnswerCache
from judges.llm.templates import drawn
from selfplay.config import Architecture, Optimisation, Section
from selfplay.config.base import Count, Positive
from selfplay.engines import Engine
from selfplay.engines.hf import TransformersEngine
from selfplay.errors import ConfigError
from selfplay.models import load_policy, load_tokenizer, save
from selfplay.progress import log
from selfplay.records import Pair, Prompt
from selfplay.stages.judge_model import check_labels, lesson_tokenizer, small_llama
from selfplay.storage import durable
from selfplay.storage.files import write_json
from selfplay.training.supervised import demonstration_rows, train_supervised

HELD_OUT = 5
"""One prompt of so many measures and does not teach."""
LEAST = 10
"""Fewest pairs to teach on, and to measure on."""


class Distillation(Section):
    """How the student is made."""

    file: str = "helpfulness-logprob"
    """The pairwise judge file that it learns to answer."""
    student: str | None = None
    """A checkpoint or hub id to fine-tune; null for a new small model."""
    epochs: Positive = 3.0
    """How often it sees each lesson; a pair is two lessons, one per order."""
    batch_size: Count = 16
    learning_rate: Positive | None = None
    """Peak learning rate; null for 2e-5 with a checkpoint and 3e-3 with a new model."""
    architecture: Architecture = Architecture(context=1024)
    """Of a new model."""
    vocabulary: Annotated[int, Field(ge=512)] = 2048
    """Size of a new model's vocabulary."""
    seed: int = 0


def distill(
    teacher: judges.JudgeSpec,
    pairs: Sequence[Pair],
    directory: Path,
    settings: Distillation,
    engine: Engine | Opener | None = None,
    cache: AnswerCache | None = None,
    answers: Mapping[str, float] | None = None,
) -> JudgeComparison:
    """Ask the teacher, teach the student, write it to a new `directory`, and compare the two on held-out pairs.

    `answers` are what is known of the pairs (see `compare_judges`). Raises ConfigError for a directory that is there, for a
    file that is not pairwise, for too few pairs, before the teacher is asked, and for a teacher that decides too few.
    """
    if directory.exists():
        raise ConfigError(f"{str(directory)!r} is there already; name a new directory")
    file = judges.load_spec(settings.file, "student")
    lessons_of = VerdictTeacher([file])
    kept = cache or AnswerCache()
    measuring = sum(measures(pair, settings.seed) for pair in pairs)
    refuse_few(f"of {len(pairs)} pairs", len(pairs) - measuring, measuring)
    decided = decided_by(judges.build(teacher.lenient(), engine, kept, seed=settings.seed), pairs)
    train, heldout = dealt(decided, settings.seed)
    refuse_few(
        f"judge {teacher.name!r} decides {len(decided)} of {len(pairs)} pairs, of which", len(train), len(heldout)
    )
    lessons = list(lessons_of.lessons(train))
    log(f"  {teacher.name} decides {len(decided)} of {len(pairs)} pairs: {len(train)} teach, {len(heldout)} measure")
    with durable.new_folder(directory) as folder:
        model, tokenizer = learned(lessons, lessons_of, settings, folder / "work")
        shutil.rmtree(folder / "work")
        save(model, tokenizer, folder)
        student = TransformersEngine(model, tokenizer, "student")
        found = compare_judges(
            (teacher, file), [row.pair for row in heldout], answers or {}, (engine, student), kept, seed=settings.seed
        )
        write_json(folder / "judge.json", report(teacher, file, settings, len(train), model.num_parameters(), found))
    return found


def dealt(rows: Sequence[GoldPair], seed: int) -> tuple[list[GoldPair], list[GoldPair]]:
    """Return the pairs to teach on, and those to measure on; all pairs of a prompt go the same way."""
    return (
        [row for row in rows if not measures(row.pair, seed)],
        [row for row in rows if measures(row.pair, seed)],
    )


def measures(pair: Pair, seed: int) -> bool:
    """Return whether a pair measures the student and does not teach it, by a hash of its prompt."""
    return drawn(seed, "held out", prompt_of(pair), HELD_OUT) == 0


def refuse_few(which: str, teaching: int, measuring: int) -> None:
    """Raise ConfigError for fewer than `LEAST` pairs to teach on or to measure on; `which` begins the sentence."""
    if min(teaching, measuring) < LEAST:
        raise ConfigError(
            f"{which} {teaching} can teach and {measuring}, of other prompts, can measure; {LEAST} of each are the least, and "
            "some hundreds make a judge: give more pairs, of more prompts"
        )


def learned(
    lessons: Sequence[TrainingExample], teacher: VerdictTeacher, settings: Distillation, work: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the student after its lessons. Raises ConfigError if its tokenizer splits a label, or no lesson fits its context."""
    if settings.student is None:
        tokenizer: Any = lesson_tokenizer(lessons, (), settings.vocabulary)
        model: Any = small_llama(settings.architecture, tokenizer, settings.seed)
    else:
        model, tokenizer = load_policy(settings.student), load_tokenizer(settings.student)
    check_labels(tokenizer, teacher.files)
    longest = model.config.max_position_embeddings
    asked = [(Prompt(id="lesson", messages=lesson.messages), lesson.answer) for lesson in lessons]
    rows = demonstration_rows(tokenizer, asked, longest)
    if not rows:
        raise ConfigError(
            f"no lesson fits the student's context of {longest} tokens: use shorter pairs or another student"
        )
    if len(rows) < len(lessons):
        log(f"  {len(lessons) - len(rows)} of {len(lessons)} lessons are longer than {longest} tokens and left out")
    rate = settings.learning_rate or (3e-3 if settings.student is None else 2e-5)
    training = Optimisation(
        steps=max(1, math.ceil(settings.epochs * len(rows) / settings.batch_size)),
        batch_size=settings.batch_size,
        learning_rate=rate,
    )
    train_supervised(model, tokenizer, rows, training, work, settings.seed, "teach the judge")
    return model, tokenizer


def report(
    teacher: judges.JudgeSpec,
    file: judges.JudgeSpec,
    settings: Distillation,
    taught_on: int,
    parameters: int,
    found: JudgeComparison,
) -> dict[str, Any]:
    """Return what `judge.json` holds: who taught what on how much, and how far the two agree on held-out pairs."""
    return {
        "teacher": teacher.name,
        "teacher_digest": judges.digest(teacher),
        "file": file.name,
        "parameters": parameters,
        "pairs_taught": taught_on,
        "settings": settings.model_dump(mode="json"),
        "held_out": found.model_dump(mode="json"),
    }
