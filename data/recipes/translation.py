"""Train the three English-to-Chinese translators of chapters 03 and 04, at equal size and for equal time.

    python data/recipes/translation.py --device cuda --minutes 2 --out build/translation
    python data/recipes/translation.py --runs transformer --out build/translation     # one of them
    python data/recipes/translation.py --quick                                         # does it run?

Each run can be stopped and goes on where it was. At the end every run is scored once on the test part;
`results.json` holds all logs and scores, and `--ship` writes the three checkpoints of the course.
Further runs leave out one thing each, to see what it brought; `more-text` adds the English–Chinese
messages of a game, whose compiled catalogue (`cataclysm-dda.mo`, Debian's package
`cataclysm-dda-data`, CC-BY-SA-3.0) is given by `--game`.
"""

from __future__ import annotations

import argparse
import gettext
import json
import platform
import re
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from loop import Plan, train
from torch import Tensor, nn

from llmcourse.data.datasets import load
from llmcourse.data.neighbours import near_duplicates
from llmcourse.data.records import Pair
from llmcourse.data.trained import save_trained
from llmcourse.data.vocabulary import BOS, PAD, UNK, Vocabulary, pad
from llmcourse.decode.translate import translate_beam, translate_greedy
from llmcourse.measure.translation import bleu_zh, chrf
from llmcourse.models.seq2seq import AttentiveLSTMTranslator, LSTMConfig, LSTMTranslator
from llmcourse.models.transformer import Transformer, TransformerConfig

LONGEST = 48  # tokens on either side; longer pairs are left out of training


@dataclass(frozen=True, slots=True)
class Run:
    """One training: which model, and what is different from the others."""

    model: str = "transformer"
    words: bool = True  # also the glosses of `chinese_words`
    game: bool = False
    dropout: float = 0.3
    smoothing: float = 0.1
    tied: bool = True
    source_vocab: int = 3000
    target_vocab: int = 4000
    rate: float = 1e-3
    word_dropout: float = 0.0  # share of the target's tokens that the decoder reads as "unknown"
    batch: tuple[int, int] = (96, 48)  # sentences, and pairs of each further part


# The LSTMs learn by heart more readily: they see fewer of the target's tokens, and smaller batches.
_LSTM = {"rate": 2e-3, "word_dropout": 0.15, "batch": (48, 16)}
RUNS = {
    "lstm": Run("lstm", **_LSTM),
    "attentive": Run("attentive", **_LSTM),
    "transformer": Run(),
    # One thing left out, or added, each; "everything" is the transformer again, at their length.
    "everything": Run(),
    "no-words": Run(words=False),
    "no-dropout": Run(dropout=0.0),
    "no-smoothing": Run(smoothing=0.0),
    "untied": Run(tied=False),
    "characters": Run(source_vocab=100, target_vocab=100),
    "more-text": Run(game=True),
}
SHIPPED = ("lstm", "attentive", "transformer")


def build(run: Run, source: int, target: int) -> nn.Module:
    """The model of a run; the three have the same number of parameters within two per cent."""
    sizes = {"source_vocab": source, "target_vocab": target}
    kept = {"dropout": run.dropout, "tied": run.tied}
    if run.model == "lstm":
        return LSTMTranslator(LSTMConfig(**sizes, hidden=240, **kept))
    if run.model == "attentive":
        return AttentiveLSTMTranslator(LSTMConfig(**sizes, hidden=224, **kept))
    return Transformer(TransformerConfig(**sizes, encoder_layers=3, decoder_layers=2, **kept))


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", default=list(SHIPPED), choices=RUNS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, for each run")
    parser.add_argument("--steps", type=int, help="of each run, instead of minutes")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/translation"))
    parser.add_argument("--game", type=Path, help="cataclysm-dda.mo")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--ship", action="store_true", help="write data/checkpoints as well")
    options = parser.parse_args()
    for name in options.runs:
        if RUNS[name].game and options.game is None:
            parser.error(f"the run {name} needs --game cataclysm-dda.mo")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    for name in options.runs:
        result = go(name, options)
        path = options.out / name / "result.json"
        path.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")
        print(name, result["parameters"], result["test"], flush=True)


def go(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run, from data to scores."""
    run, device = RUNS[name], torch.device(options.device)
    parts = training_pairs(run, options.game)
    source_vocab, target_vocab = vocabularies(run, parts)
    torch.manual_seed(0)
    model = build(run, len(source_vocab), len(target_vocab)).to(device)
    held_out = {part: list(load("english_chinese", split=part)) for part in ("validation", "test")}
    if options.quick:
        held_out = {part: rows[:20] for part, rows in held_out.items()}
    ids = {
        part: pad([source_vocab.encode(pair.english) for pair in rows]).to(device)
        for part, rows in held_out.items()
    }
    tensors = [encode(pairs, source_vocab, target_vocab, device) for pairs in parts.values()]

    def loss_of(step: int) -> Tensor:
        batch = draw(tensors, step, run.batch)
        total, count = torch.zeros((), device=device), 0
        for (
            source,
            target,
        ) in batch:  # each at its own length: glosses are short, and filling costs time
            read = target[:, :-1]
            if run.word_dropout:
                hidden = (torch.rand(read.shape, device=device) < run.word_dropout) & (read > UNK)
                read = read.masked_fill(hidden, UNK)
            total = total + F.cross_entropy(
                model(source, read).flatten(0, 1),
                target[:, 1:].flatten(),
                ignore_index=PAD,
                label_smoothing=run.smoothing,
                reduction="sum",
            )
            count += int((target[:, 1:] != PAD).sum())
        return total / count

    def evaluate() -> dict[str, float]:
        told = [target_vocab.decode(row) for row in translate_greedy(model, ids["validation"])]
        wanted = [pair.chinese for pair in held_out["validation"]]
        return {"chrf": chrf(told, wanted).value, "bleu": bleu_zh(told, wanted).value}

    folder = options.out / name
    steps = (
        8
        if options.quick
        else options.steps or steps_within(60 * options.minutes, model, loss_of, folder)
    )
    # Not the best chrF: it gives the constant translation "。" more than a weak model.
    plan = Plan(steps, every=max(4, min(250, steps // 40)), best="bleu", rate=run.rate)
    log = train(model, loss_of, evaluate, plan, folder, name)
    model.eval()
    test, told = {}, {}
    wanted = [pair.chinese for pair in held_out["test"]]
    for way, translate in (("greedy", translate_greedy), ("beam", translate_beam)):
        told[way] = [target_vocab.decode(row) for row in translate(model, ids["test"])]
        test[f"{way}_chrf"] = chrf(told[way], wanted).to_dict()
        test[f"{way}_bleu"] = bleu_zh(told[way], wanted).to_dict()
    parameters = sum(p.numel() for p in model.parameters())
    result = {
        "parameters": parameters,
        "run": asdict(run),
        "pairs": {part: len(pairs) for part, pairs in parts.items()},
        "log": log,
        "test": test,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    about = result | {
        "model": run.model,
        "config": model.config.to_dict(),
        "source_vocabulary": source_vocab.to_json(),
        "target_vocabulary": target_vocab.to_json(),
        "recipe": "data/recipes/translation.py",
    }
    save_trained(options.out / name / f"{name}.safetensors", model.state_dict(), about)
    if options.ship and name in SHIPPED:
        where = Path(__file__).parents[1] / "checkpoints" / f"translate_{name}.safetensors"
        save_trained(where, model.state_dict(), about)
    return result


def steps_within(seconds: float, model: nn.Module, loss_of: Any, folder: Path) -> int:
    """How many steps of this model fit in the time, tried once: the rate must know where the end is."""
    path = folder / "steps.txt"
    if path.exists():
        return int(path.read_text("utf-8"))
    adam = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    loss, begun = loss_of(0), 0.0
    for step in range(60):
        if step == 20:
            loss.item()  # waits for the device
            begun = time.perf_counter()
        loss = loss_of(step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
    loss.item()
    steps = int(seconds * 40 / (time.perf_counter() - begun))
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(str(steps), "utf-8")
    return steps


def training_pairs(run: Run, game: Path | None) -> dict[str, list[Pair]]:
    """The texts of a run by where they come from; nothing that is near a held-out pair."""
    clean = [p for p in load("english_chinese", split="train") if "<" not in p.english]
    parts = {"sentences": clean}
    if run.words:
        parts["words"] = [Pair(w.english, w.chinese) for w in load("chinese_words")]
    if run.game and game is not None:
        parts["game"] = game_pairs(game)
    held_out = [p for s in ("validation", "test") for p in load("english_chinese", split=s)]
    return {
        name: pairs if name == "sentences" else without_twins(pairs, held_out)
        for name, pairs in parts.items()
    }


def without_twins(pairs: list[Pair], held_out: list[Pair]) -> list[Pair]:
    """The pairs that are no near-duplicate of a held-out one, in either language."""
    close = set()
    for texts, n in (
        ([p.english for p in pairs + held_out], 3),
        ([p.chinese for p in pairs + held_out], 2),
    ):
        for i, j in near_duplicates(texts, n=n):
            if i < len(pairs) <= j:
                close.add(i)
    return [pair for i, pair in enumerate(pairs) if i not in close]


def game_pairs(catalogue: Path) -> list[Pair]:
    """Whole sentences of a compiled gettext catalogue, without those that hold placeholders."""
    with catalogue.open("rb") as file:
        rows = gettext.GNUTranslations(file)._catalog.items()  # type: ignore[attr-defined]
    pairs = []
    for key, chinese in rows:
        if not isinstance(key, str) or not isinstance(chinese, str):
            continue
        english = key.rpartition("\x04")[2]
        words = len(english.split())
        if re.search(r"[%<>{}\\|_\n*#$&\[]", english + chinese) or not 3 <= words <= 30:
            continue
        if re.search(r"[.!?]\"?$", english) and re.search(r"[\u4e00-\u9fff]", chinese):
            pairs.append(Pair(" ".join(english.split()), chinese))
    return list(dict.fromkeys(pairs))


def vocabularies(run: Run, parts: dict[str, list[Pair]]) -> tuple[Vocabulary, Vocabulary]:
    """Pieces of both languages, learnt from the training text alone."""
    pairs = [pair for part in parts.values() for pair in part]
    return (
        Vocabulary.learn((p.english for p in pairs), run.source_vocab, language="english"),
        Vocabulary.learn((p.chinese for p in pairs), run.target_vocab, language="chinese"),
    )


def encode(
    pairs: list[Pair], source: Vocabulary, target: Vocabulary, device: torch.device
) -> tuple[Tensor, Tensor]:
    """All pairs as two filled tensors (pairs, S) and (pairs, T), the target with BOS in front."""
    rows = [(source.encode(p.english), [BOS, *target.encode(p.chinese)]) for p in pairs]
    rows = [row for row in rows if max(map(len, row)) <= LONGEST]
    return pad([row[0] for row in rows]).to(device), pad([row[1] for row in rows]).to(device)


def draw(
    tensors: list[tuple[Tensor, Tensor]], step: int, sizes: tuple[int, int]
) -> list[tuple[Tensor, Tensor]]:
    """The batch of a step: some sentences, and some pairs of each further part."""
    generator = torch.Generator().manual_seed(step)
    batch = []
    for number, (source, target) in enumerate(tensors):
        chosen = torch.randint(len(source), (sizes[min(number, 1)],), generator=generator)
        chosen = chosen.to(source.device)
        batch.append((trimmed(source[chosen]), trimmed(target[chosen])))
    return batch


def trimmed(ids: Tensor) -> Tensor:
    """Without the columns on the right that hold filling alone."""
    return ids[:, : int((ids != PAD).sum(1).max())]


if __name__ == "__main__":
    main()
