"""The model card that every checkpoint of a run has: what it says, and that a run that goes on does not mind it."""

import shutil

import judges
from selfplay.config import load_recipe
from selfplay.formatting import rate_text
from selfplay.loop import run
from selfplay.records import Comparison
from selfplay.storage.files import read_json


def test_every_checkpoint_of_a_run_has_a_card(tiny_run):
    digest = judges.digest(judges.load_spec(str(tiny_run.parent / "tiny_judge.yaml")))
    for number in (1, 2):
        card = (tiny_run / f"iteration-00{number}/policy/README.md").read_text()
        evaluation = read_json(tiny_run / f"iteration-00{number}/evaluate/evaluation.json")
        for label, key in (
            ("win rate against the start", "win_rate_vs_start"),
            ("win rate against the iteration before", "win_rate_vs_previous"),
        ):
            assert f"| {label} | {rate_text(Comparison.model_validate(evaluation[key]))} |" in card
        assert f"# tiny, iteration {number}\n" in card and f"iteration {number} of 2" in card
        assert f"- labels: judge `tiny` version 1, sha256 {digest[:16]}\n" in card
        assert "- prompts: stories (train); measured on stories (heldout)" in card
        assert "On 32 held-out prompts, by the judge that also gave the labels" in card
        weaknesses = card[card.index("## Known weaknesses") :]
        assert "Labels and win rates come from one judge" in weaknesses and "no safety" in weaknesses
        for alarm in read_json(tiny_run / "outcome.json")["alarms"]:
            assert (alarm["sentence"] in weaknesses) == (alarm["iteration"] == number)


def test_the_starts_card_claims_nothing_that_did_not_happen(tiny_run):
    card = (tiny_run / "iteration-000/policy/README.md").read_text()
    assert "the start of the run, before any self-play." in card
    assert "- pretrained in this run on stories, fine-tuned on stories\n" in card
    assert not any(word in card for word in ("win rate", "judge `", "PPO:"))


def test_a_run_that_goes_on_writes_lost_cards_again_and_redoes_no_stage(tiny_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy, symlinks=True)
    cards = [copy / f"iteration-00{number}/policy/README.md" for number in range(3)]
    before, manifests = [card.read_text() for card in cards], sorted(copy.rglob("manifest.json"))
    times = [file.stat().st_mtime_ns for file in manifests]
    assert all("README.md" not in read_json(file)["outputs"] for file in manifests)
    cards[0].unlink()
    cards[1].write_text("someone's notes")
    run(load_recipe(copy / "config.yaml", [f"output={copy}"]))
    assert [card.read_text() for card in cards] == before
    assert [file.stat().st_mtime_ns for file in manifests] == times
