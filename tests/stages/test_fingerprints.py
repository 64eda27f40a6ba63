"""What start and policy follow from holds the content of the files that they learn from; those of before go by their names."""

from pathlib import Path

import pytest

from selfplay.config import load_recipe
from selfplay.context import RunContext
from selfplay.errors import ConfigError
from selfplay.rundir import RunDirectory
from selfplay.stages import policy
from selfplay.stages.bootstrap import fingerprint

CORPUS = "policy.bootstrap={corpus: %s, sft: {source: %s}}"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A corpus, a folder that is one, demonstrations, and a recipe that is completed by overrides."""
    (tmp_path / "folder").mkdir()
    found = {name: tmp_path / name for name in ("corpus.txt", "folder/a.txt", "shown.jsonl", "recipe.yaml")}
    for path in found.values():
        path.write_text("one\n")
    found["recipe.yaml"].write_text("prompts: {train: {source: stories}}\n")
    return found


def opened(files: dict[str, Path], *settings: str) -> RunContext:
    """The run, without its prompts."""
    home = files["recipe.yaml"].with_name("run")
    recipe = load_recipe(files["recipe.yaml"], [f"output={home}", *settings])
    return RunContext(recipe, RunDirectory(home), [], [])


def begin(run: RunContext, told: str) -> None:
    """Begin the start with a fingerprint, and be stopped in it."""
    with pytest.raises(KeyboardInterrupt), run.writing(0, "policy", told) as folder:
        (folder / "work" / "step").write_text("1")
        raise KeyboardInterrupt


@pytest.mark.parametrize("corpus", ["corpus.txt", "folder"])
def test_an_edited_file_makes_another_start(files: dict[str, Path], corpus: str) -> None:
    base = files["recipe.yaml"].parent
    run = opened(files, CORPUS % (base / corpus, base / "shown.jsonl"))
    told = [fingerprint(run)]
    assert fingerprint(run) == told[0]
    begin(run, told[0])
    for path in (files["corpus.txt" if corpus == "corpus.txt" else "folder/a.txt"], files["shown.jsonl"]):
        path.write_text("two\n")
        told.append(fingerprint(run))
    assert len(set(told)) == 3
    with run.writing(0, "policy", told[-1]) as folder:
        assert not (folder / "work" / "step").exists(), "begun anew"
    run.files.check_fingerprint(0, "policy", fingerprint(run))
    files["shown.jsonl"].write_text("three\n")
    with pytest.raises(ConfigError, match="was made with other settings or from other files than those there now"):
        run.files.check_fingerprint(0, "policy", fingerprint(run))
    files["shown.jsonl"].unlink()  # of a finished start nothing is read any more
    run.files.check_fingerprint(0, "policy", fingerprint(run))


@pytest.mark.parametrize("finished", [False, True])
def test_a_start_of_before_goes_by_names(files: dict[str, Path], finished: bool) -> None:
    base = files["recipe.yaml"].parent
    run = opened(files, CORPUS % (base / "corpus.txt", base / "shown.jsonl"))
    named = run.fingerprint(run.recipe.policy.model_dump(exclude={"dtype", "lora"}))
    assert fingerprint(run) != named
    begin(run, named)
    if finished:
        with run.writing(0, "policy", named):
            pass
    files["corpus.txt"].write_text("two\n")
    assert fingerprint(run) == named


def test_an_edited_corpus_of_ppos_makes_another_policy(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunDirectory, "manifest_hash", lambda files, number, name: f"{number} {name}")
    corpus = f"algorithm={{kind: ppo, pretraining: {{source: {files['corpus.txt']}}}}}"
    run = opened(files, "policy={model: some/model}", "reward={kind: judge}", corpus)
    told = policy.fingerprint(run, 1)
    assert policy.fingerprint(run, 1) == told
    files["corpus.txt"].write_text("two\n")
    assert policy.fingerprint(run, 1) != told


def test_what_is_built_in_and_a_given_model_go_by_their_names(files: dict[str, Path]) -> None:
    for setting in ("policy.bootstrap={}", "policy={model: some/model, bootstrap: null}"):
        run = opened(files, setting)
        assert fingerprint(run) == run.fingerprint(run.recipe.policy.model_dump(exclude={"dtype", "lora"}))
