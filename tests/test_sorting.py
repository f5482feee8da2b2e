"""Sorting: the corpus, the split, the reward."""

import shutil

import pytest

from zolab.assets import AssetError
from zolab.errors import ZolabError
from zolab.rl.rollout import rollout
from zolab.tasks import bases
from zolab.tasks.bases import card, load_base
from zolab.tasks.characters import tokenizer
from zolab.tasks.pretraining import IGNORED, batch_of, blank, pretrain
from zolab.tasks.sorting import ALPHABET, SKILLS, Sorting, is_held_out, sorted_exactly

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_third_of_the_demonstrations_sort_and_the_others_share_the_rest():
    pairs = Sorting().demonstrations(3000, seed=0)
    shares = {
        name: sum(skill(p[:-1]) == a for p, a in pairs) / 3000
        for name, skill in SKILLS.items()
    }
    assert shares["sort"] == pytest.approx(0.35, abs=0.03)
    for name in ("copy", "reverse", "descend"):
        assert shares[name] == pytest.approx(0.65 / 3, abs=0.03)


def test_no_string_is_on_both_sides_of_the_split_whatever_the_seeds():
    task = Sorting(digits=4)  # of 10,000 strings many come twice
    trained = {p for p, _ in task.demonstrations(4000, seed=0)}
    trained |= set(task.prompts(4000, seed=1))
    judged = set(task.prompts(1000, seed=2, held_out=True))
    assert len(trained) > 3000 and len(judged) > 500
    assert not trained & judged
    assert all(map(is_held_out, judged)) and not any(map(is_held_out, trained))


def test_a_split_by_seeds_alone_would_have_leaked():
    """Two seeds share prompts: 4,000 draws of 10,000 strings meet."""
    task = Sorting(digits=4)
    a, b = (set(task.prompts(4000, seed=s)) for s in (0, 1))
    assert len(a & b) > 500


def test_prompts_follow_from_the_seed_alone():
    task = Sorting()
    assert task.prompts(20, seed=3) == task.prompts(20, seed=3)
    assert task.prompts(20, seed=3) != task.prompts(20, seed=4)
    assert task.prompts(5, seed=3) == task.prompts(20, seed=3)[:5]


def test_only_the_exact_answer_that_stops_is_paid():
    prompts = ["312="] * 5
    texts = ["123", "123", "12", "1233", "321"]
    stop = ["eos", "length", "eos", "eos", "eos"]
    assert sorted_exactly(prompts, texts, stop=stop) == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("options", [{"digits": 1}, {"wanted": 1.5}])
def test_no_task(options):
    with pytest.raises(ZolabError, match="makes no task"):
        Sorting(**options)


def test_the_loss_counts_the_answer_and_its_eos_and_nothing_else():
    tok = tokenizer(ALPHABET)
    ids, labels = batch_of(tok, [("31=", "13"), ("5=", "5")])
    assert ids.tolist() == [[1, 6, 4, 13, 4, 6, 2], [1, 8, 13, 8, 2, 0, 0]]
    ignored = IGNORED
    assert labels.tolist() == [
        [ignored, ignored, ignored, ignored, 4, 6, 2],
        [ignored, ignored, ignored, 8, 2, ignored, ignored],
    ]


def test_pretraining_learns_to_copy_two_digits():
    task, tok = Sorting(digits=2, wanted=0.0), tokenizer(ALPHABET)
    model = blank(tok, hidden=32, heads=2, inner=64)
    losses = list(pretrain(model, tok, task, steps=60, batch=64, lr=1e-2, warmup=10))
    assert losses[0] > 2.4
    assert sum(losses[-5:]) / 5 < 0.9


def test_characters_outside_of_the_alphabet_raise():
    with pytest.raises(Exception, match="UNK"):
        tokenizer(ALPHABET)("12a=")
    with pytest.raises(ValueError, match="twice"):
        tokenizer("112")


def test_the_base_is_small_its_card_complete_and_its_file_the_measured_one(tmp_path):
    card_ = card("sorting")
    assert card_["bytes"] < 2_000_000 and card_["licence"] == "Apache-2.0"
    assert card_["command"].startswith("python scripts/pretrain_skills.py sorting")
    model, tok = load_base("sorting")
    assert sum(p.numel() for p in model.parameters()) == card_["parameters"]
    assert not model.training and len(tok) == len(ALPHABET) + 3
    with pytest.raises(AssetError, match="no base is called"):
        load_base("chess")


def test_a_damaged_base_does_not_load(tmp_path, monkeypatch):
    copy = tmp_path / "sorting"
    shutil.copytree(bases.DATA / "sorting", copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    monkeypatch.setattr(bases, "DATA", tmp_path)
    with pytest.raises(AssetError, match="not the file that was measured"):
        load_base("sorting")


def test_the_base_holds_what_rewards_will_select():
    """It sorts one time in four, downwards one in twelve; most are permutations."""
    model, tok = load_base("sorting")
    prompts = Sorting().prompts(64, seed=0, held_out=True)
    r = rollout(model, tok, prompts, group_size=8, max_new_tokens=7, generator=0)
    pairs = [(p[:-1], t) for p, t in zip(r.prompts, r.texts, strict=True)]
    share = {
        n: sum(f(p) == t for p, t in pairs) / len(pairs) for n, f in SKILLS.items()
    }
    assert 0.17 < share["sort"] < 0.30 and 0.04 < share["descend"] < 0.13
    assert sum(sorted(p) == sorted(t) for p, t in pairs) > 0.65 * len(pairs)
