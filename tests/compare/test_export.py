"""Exported checkpoints: they load, sample as was measured, say where they come from, and can be pushed again."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys

import pytest

from selfplay.compare.export import export
from selfplay.errors import ConfigError


@pytest.fixture
def tiny(tiny_run):
    """A real run of two iterations, as small as they come."""
    return tiny_run


def test_an_exported_checkpoint_loads_and_has_its_card(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = export(f"{tiny}@2", tmp_path / "out")
    model, original = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tiny / "iteration-002/policy"))
    weights = original.state_dict()
    assert all((weight == weights[name]).all() for name, weight in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder).chat_template
    card = (folder / "README.md").read_text()
    rate = json.loads((tiny / "iteration-002/evaluate/evaluation.json").read_text())["win_rate_vs_start"]
    assert f"{100 * rate['win_rate']:.0f}% [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]" in card
    assert "judge `tiny` version 1, sha256 " in card and "one judge" in card
    with pytest.raises(ConfigError, match="is not empty"):
        export(f"{tiny}@2", folder)
    with pytest.raises(ConfigError, match="is not a run directory"):
        export(str(tiny / "iteration-002/policy"), tmp_path / "other")


def test_the_folder_that_one_is_in_is_no_new_directory(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'\.' is not the name of a new directory: give one"):
        export(f"{tiny}@1", ".")
    assert not list(tmp_path.iterdir())


def test_export_pushes_only_where_asked(tiny, tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append(("create", name, options))

        def upload_folder(self, **options):
            calls.append(("upload", options["repo_id"], options["folder_path"]))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    export(f"{tiny}@start", tmp_path / "kept")
    assert calls == []
    folder = export(f"{tiny}@1", tmp_path / "shared", push_to_hub="me/model")
    assert calls == [("create", "me/model", {"private": True, "exist_ok": True}), ("upload", "me/model", folder)]


def test_a_push_that_failed_is_tried_again_by_the_same_call(tiny, tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            if not calls:
                calls.append("failed")
                raise OSError("401 Unauthorized")

        def upload_folder(self, **options):
            calls.append(options["repo_id"])

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(ConfigError, match="'me/model' failed: OSError: 401 Unauthorized; give the same command"):
        export(f"{tiny}@2", tmp_path / "out", push_to_hub="me/model")
    weights = (tmp_path / "out/model.safetensors").stat().st_mtime_ns
    assert export(f"{tiny}@2", tmp_path / "out", push_to_hub="me/model") == tmp_path / "out"
    assert calls == ["failed", "me/model"] and (tmp_path / "out/model.safetensors").stat().st_mtime_ns == weights
    for target, repository in ((f"{tiny}@1", "me/model"), (f"{tiny}@2", "me/other")):
        with pytest.raises(ConfigError, match="is not empty"):
            export(target, tmp_path / "out", push_to_hub=repository)


def test_an_export_samples_as_was_measured(tiny, tmp_path):
    found = json.loads((export(f"{tiny}@2", tmp_path / "out") / "generation_config.json").read_text())
    assert {
        key: found[key] for key in ("do_sample", "temperature", "top_p", "top_k", "max_new_tokens") if key in found
    } == {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "max_new_tokens": 64,
    }
    copy = tmp_path / "greedy"
    shutil.copytree(tiny, copy, symlinks=True)
    (copy / "provenance.json").unlink()
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(re.sub(r"(evaluate:.*?temperature: )1.0", r"\g<1>0", config, flags=re.S))
    found = json.loads((export(f"{copy}@2", tmp_path / "out2") / "generation_config.json").read_text())
    assert found.get("do_sample", False) is False and found["max_new_tokens"] == 64 and "temperature" not in found


def test_files_have_the_modes_that_the_umask_says(tiny, tmp_path):
    before = os.umask(0o027)
    try:
        folder = export(f"{tiny}@2", tmp_path / "out")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_the_hub_reads_the_card(tiny, tmp_path):
    from huggingface_hub import ModelCard

    folder = export(f"{tiny}@2", tmp_path / "out", license="apache-2.0")
    data = ModelCard((folder / "README.md").read_text()).data
    rates = json.loads((tiny / "iteration-002/evaluate/evaluation.json").read_text())
    assert (data.license, data.base_model, data.datasets) == ("apache-2.0", None, None)
    assert data.tags == ["selfplay", "ppo", "rlaif"]
    assert [(one.metric_name, one.metric_value) for one in data.eval_results] == [
        ("Win rate against the start, judge tiny_judge", round(rates["win_rate_vs_start"]["win_rate"], 4)),
        (
            "Win rate against the iteration before, judge tiny_judge",
            round(rates["win_rate_vs_previous"]["win_rate"], 4),
        ),
    ]
    assert {one.dataset_type for one in data.eval_results} == {"stories"}


def test_the_base_models_license_and_the_hubs_datasets_are_named(tiny, tmp_path):
    from huggingface_hub import ModelCard

    from selfplay.config import Recipe
    from selfplay.report.card_metadata import front_matter
    from selfplay.results.load import read_run

    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    recipe = Recipe(
        name="r",
        policy={"model": str(base)},
        prompts={"train": {"source": "org/prompts"}, "heldout": {"source": "org/prompts", "split": "test"}},
    )
    run = read_run(tiny)
    data = ModelCard(front_matter(run, recipe, run.iterations[1])).data
    assert (data.license, data.datasets, data.base_model) == ("mit", ["org/prompts"], None)
    hub = recipe.model_copy(update={"policy": recipe.policy.model_copy(update={"model": "org/base"})})
    data = ModelCard(front_matter(run, hub, run.iterations[1])).data
    assert (data.license, data.base_model) == ("unknown", "org/base")


def test_the_snippet_in_the_card_runs_as_it_stands(tiny, tmp_path):
    folder = export(f"{tiny}@2", tmp_path / "out")
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
    assert 'pipeline("text-generation", model=".")' in code


def test_best_of_several_answers_is_no_checkpoint(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"@1\*4' is the best of 4 answers, .*: leave \*4 out"):
        export(f"{tiny}@1*4", tmp_path / "new")
    assert not (tmp_path / "new").exists()
