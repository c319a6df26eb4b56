"""Vocabularies, greedy and beam, chrF and BLEU, and the small checkpoints' files."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcourse.data.datasets import load
from llmcourse.data.trained import load_trained, save_trained, trained_names
from llmcourse.data.vocabulary import BOS, EOS, PAD, UNK, Vocabulary, pad
from llmcourse.decode.translate import translate_beam, translate_greedy
from llmcourse.errors import CourseError
from llmcourse.measure.quality import Estimate
from llmcourse.measure.translation import bleu_zh, chrf, paired_bootstrap

ROOT = Path(__file__).parents[1]
PAIRS = load("english_chinese", origin="sample")


@pytest.fixture(scope="module")
def english():
    return Vocabulary.learn([p.english for p in PAIRS], 200, language="english")


@pytest.fixture(scope="module")
def chinese():
    return Vocabulary.learn([p.chinese for p in PAIRS], 400, language="chinese")


# --- vocabularies ------------------------------------------------------------------------------


def test_there_and_back(english, chinese):
    """Do the pieces of a text give the text: English in lower case, Chinese as it was?"""
    for pair in PAIRS:
        assert english.decode(english.encode(pair.english)) == pair.english.lower()
        assert chinese.decode(chinese.encode(pair.chinese)) == pair.chinese


def test_json_keeps_a_vocabulary(chinese):
    copy = Vocabulary.from_json(chinese.to_json())
    assert len(copy) == len(chinese)
    assert all(copy.encode(p.chinese) == chinese.encode(p.chinese) for p in PAIRS)
    with pytest.raises(CourseError, match="no vocabulary"):
        Vocabulary.from_json("{}")


def test_more_pieces_make_shorter_texts():
    """Does byte-pair encoding do what it is for?"""
    texts = [p.chinese for p in PAIRS]
    sizes = [
        sum(len(Vocabulary.learn(texts, size, language="chinese").encode(t)) for t in texts)
        for size in (10, 500)
    ]
    characters = sum(len(text) + 1 for text in texts)
    assert sizes[0] == characters > sizes[1]


def test_unknown_characters_are_said_to_be_unknown(chinese):
    ids = chinese.encode("我𠀀去")
    assert UNK in ids and "�" in chinese.decode(ids)


def test_special_ids_are_where_the_models_expect_them(english):
    assert english.pieces([PAD, BOS, EOS, UNK]) == ["<pad>", "<s>", "</s>", "<unk>"]
    assert english.encode("the")[-1] == EOS
    assert english.decode([BOS, *english.encode("the bus"), PAD, 7]) == "the bus"


def test_a_text_of_nothing_and_one_too_long(english):
    for nothing in ("", "   "):
        with pytest.raises(CourseError, match="text is empty"):
            english.encode(nothing)
    long = "the bus " * 20
    with pytest.raises(CourseError, match="reads at most 8"):
        english.encode(long, max_tokens=8)
    exact = len(english.encode(long))
    assert len(english.encode(long, max_tokens=exact)) == exact


def test_pad_fills_on_the_right():
    assert pad([[5, 6], [7]]).tolist() == [[5, 6], [7, PAD]]


# --- greedy and beam, on a model whose probabilities are a table -------------------------------


class Table:
    """A translator over 6 tokens whose next token depends on the last two: small enough to enumerate."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.logits = 2 * torch.randn(6, 6, 6, generator=generator)
        self.logits[..., [PAD, BOS, UNK]] = -1e9

    class State(tuple):
        def select(self, rows):
            return Table.State(part[rows] for part in self)

    def start(self, source):
        return Table.State([torch.zeros_like(source[:, 0])])

    def step(self, state, tokens):
        return self.logits[state[0], tokens], Table.State([tokens])

    def log_p(self, row):
        before, last, total = 0, BOS, 0.0
        for token in row:
            total += float(self.logits[before, last].log_softmax(-1)[token])
            before, last = last, token
        return total


SOURCE = torch.tensor([[4, EOS]])


@given(seed=st.integers(0, 500), penalty=st.sampled_from([0.0, 0.6, 1.0]))
@settings(max_examples=25, deadline=None)
def test_a_beam_as_wide_as_all_is_exact(seed, penalty):
    """With room for every sentence, does the beam find the best of all, listed one by one?"""
    table, most = Table(seed), 4
    ended = [
        (*words, EOS) for n in range(most) for words in itertools.product((4, 5), repeat=n)
    ] + list(itertools.product((4, 5), repeat=most))
    best = max(ended, key=lambda row: table.log_p(row) / ((5 + len(row)) / 6) ** penalty)
    found = translate_beam(table, SOURCE, width=40, length_penalty=penalty, max_tokens=most)
    assert found == [[token for token in best if token != EOS]]


@given(seed=st.integers(0, 500))
@settings(max_examples=25, deadline=None)
def test_a_beam_of_one_is_greedy(seed):
    table = Table(seed)
    greedy = translate_greedy(table, SOURCE, max_tokens=7)
    assert translate_beam(table, SOURCE, width=1, max_tokens=7) == greedy


def test_rows_of_a_batch_do_not_meet(english, chinese):
    """Do two sentences together give what each gives alone, greedily and with a beam?"""
    from llmcourse.models.transformer import Transformer, TransformerConfig

    torch.manual_seed(3)
    config = TransformerConfig(len(english), len(chinese), width=16, heads=2, hidden=16)
    model = Transformer(config).eval()
    texts = ["The bus is late again.", "Please."]
    rows = [english.encode(text) for text in texts]
    for translate in (translate_greedy, translate_beam):
        together = translate(model, pad(rows), max_tokens=9)
        assert together == [translate(model, pad([row]), max_tokens=9)[0] for row in rows]


def test_an_empty_source_is_one_sentence():
    for translate in (translate_greedy, translate_beam):
        for empty in (torch.zeros(1, 0, dtype=torch.long), torch.tensor([[4], [PAD]])):
            with pytest.raises(CourseError, match="source text is empty"):
                translate(Table(0), empty)
    with pytest.raises(CourseError, match="width of 1 or more"):
        translate_beam(Table(0), SOURCE, width=0)


# --- scores ------------------------------------------------------------------------------------


def test_scores_are_sacrebleus():
    """Are value and sacreBLEU's own the same, and does the interval hold the value?"""
    from sacrebleu.metrics import BLEU, CHRF

    wanted = [p.chinese for p in PAIRS]
    told = [text[:-2] + "了。" for text in wanted]
    assert chrf(told, wanted).value == pytest.approx(CHRF().corpus_score(told, [wanted]).score)
    theirs = BLEU(tokenize="zh").corpus_score(told, [wanted]).score
    assert bleu_zh(told, wanted).value == pytest.approx(theirs)
    for score in (chrf, bleu_zh):
        found = score(told, wanted)
        assert 0 < found.low < found.value < found.high < 100
        assert score(wanted, wanted).value == pytest.approx(100)


def test_a_paired_difference_is_tighter_than_two_intervals():
    wanted = [p.chinese for p in PAIRS]
    a = [text[:-1] for text in wanted]
    b = [text[1:] for text in wanted]
    gap = paired_bootstrap(a, b, wanted)
    assert gap.value == pytest.approx(chrf(a, wanted).value - chrf(b, wanted).value)
    assert gap.high - gap.low < (chrf(a, wanted).high - chrf(a, wanted).low) * 2
    assert paired_bootstrap(a, a, wanted, metric="bleu_zh").value == 0


def test_swapped_or_single_texts_are_one_sentence():
    with pytest.raises(CourseError, match="lists of sentences"):
        chrf("我", ["我"])
    with pytest.raises(CourseError, match="1 translations and 2 references"):
        bleu_zh(["我"], ["我", "你"])


# --- checkpoints -------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_and_is_the_same_file_twice(tmp_path, monkeypatch):
    """Half precision, a tied tensor once, the same bytes for the same content?"""
    monkeypatch.setattr("llmcourse.data.trained._folder", lambda: tmp_path)
    table = torch.randn(5, 3)
    weights, about = {"a": table, "b": table, "c": torch.ones(2)}, {"x": 1, "y": "模型", "z": [1.5]}
    paths = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    for path in paths:
        save_trained(path, weights, about)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    found, told = load_trained("one")
    assert told == about and set(found) == {"a", "c"} and found["a"].dtype == torch.float32
    torch.testing.assert_close(found["a"], table.half().float(), rtol=0, atol=0)
    paths[0].write_bytes(paths[0].read_bytes()[:-8])
    with pytest.raises(CourseError, match="cut short or damaged"):
        load_trained("one")
    with pytest.raises(CourseError, match="ships no checkpoint 'three'"):
        load_trained("three")


def test_shipped_checkpoints_are_small_and_have_a_card():
    folder = ROOT / "data" / "checkpoints"
    assert trained_names()
    sizes = {path.stem: path.stat().st_size for path in folder.glob("*.safetensors")}
    assert sum(size for name, size in sizes.items() if name.startswith("translate_")) < 25e6
    assert sum(sizes.values()) < 30e6
    cards = {path.stem for path in folder.glob("*.md")}
    for name in trained_names():
        assert name.split("_")[0] in cards, f"{name} has no card"


# --- recipe ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_training_ends_as_if_it_had_not_been(tmp_path):
    """Stopped at an evaluation and started again, does a run give the very same weights?"""
    code = """
import sys, json; from pathlib import Path
import torch
from torch import nn
from loop import Plan, train
out, stop = Path(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
x = torch.randn(64, 4); y = x.sum(1, keepdim=True)
def loss(step):
    if step == stop: raise SystemExit(3)
    rows = torch.randint(64, (16,), generator=torch.Generator().manual_seed(step))
    return (model(x[rows]) - y[rows]).square().mean()
log = train(model, loss, lambda: {"score": -(model(x) - y).square().mean().item()},
            Plan(40, every=10, best="score", warmup=5), out, "test")
print(json.dumps([[row["step"], row["loss"], row["score"]] for row in log]))
print(float(sum(p.double().sum() for p in model.parameters())))
"""
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'data' / 'recipes'}:{ROOT}", "TQDM_DISABLE": "1"}

    def run(folder, stop):
        command = [sys.executable, "-c", code, str(folder), str(stop)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    whole = run(tmp_path / "whole", -1)
    assert whole.returncode == 0, whole.stderr
    assert run(tmp_path / "cut", 27).returncode == 3
    assert run(tmp_path / "cut", -1).stdout == whole.stdout


def test_the_card_tells_the_files():
    """Are parameters, bytes and scores on the translators' card those of the files?"""
    card = (ROOT / "data" / "checkpoints" / "translate.md").read_text("utf-8")
    for name in ("lstm", "attentive", "transformer"):
        _, about = load_trained(f"translate_{name}")
        size = (ROOT / "data" / "checkpoints" / f"translate_{name}.safetensors").stat().st_size
        assert f"{about['parameters']:,} | {size:,} |" in card
        score = Estimate.from_dict(about["test"]["greedy_bleu"])
        assert f"| {name} | {score.short()} |" in card
