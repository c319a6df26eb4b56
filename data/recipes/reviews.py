"""The small BERT of chapter 05: pretrained on unlabelled reviews, fine-tuned, measured, compared.

    PYTHONPATH=. python data/recipes/reviews.py --device cuda --out build/reviews

1. Masked-language-model pretraining on the texts of the training part; labels are not looked at.
2. The recipe of fine-tuning (rate, length) is chosen once on the validation part with all labels.
3. Learning curve: 100 to all labels, three draws each, from random weights, from the pretrained
   ones, and a bag of character n-grams with logistic regression beside them. Each run ends after a
   fixed number of steps; the test part is read once, at its end, and nothing is chosen by it.

Writes `reviews_pretrained.safetensors` (embeddings, encoder, masked-token head), `reviews.safetensors`
(encoder and classifier after fine-tuning; the embeddings stay as pretrained) and `curve.json`.
About 5 minutes on an H200, hours on 2 CPU cores. Stopped at any
moment, the same line goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from loop import Plan, train
from torch import Tensor, nn

from llmcourse.data.characters import MASK, SPECIAL, Characters
from llmcourse.data.datasets import load
from llmcourse.data.trained import save_trained
from llmcourse.measure.quality import wilson
from llmcourse.models.bert import BertConfig, Classifier, MaskedLanguageModel

CONTEXT = 192  # 95 % of the reviews fit; of the others the middle is left out
RARE = 8  # a character must occur so often to have a row of the table
MASKED = 0.15
SEEDS = (0, 1, 2)
# Labels, batch, steps from the pretrained weights and from random ones.
CURVE = (
    (100, 32, 100, 150),
    (300, 32, 150, 250),
    (1000, 32, 250, 400),
    (3000, 64, 300, 600),
    (0, 256, 450, 850),  # all
)
# Tried on validation: rate, and share of the steps above.
TRIALS = {
    "pretrained": ((2e-4, 1.0), (4e-4, 1.0), (4e-4, 0.5)),
    "random": ((3e-4, 1.0), (6e-4, 1.0), (6e-4, 0.5)),
}


class Part:
    """The reviews of one part as one tensor; batches are cut to their own longest review."""

    def __init__(self, reviews: Sequence[Any], tokenizer: Characters, device: str) -> None:
        ids, padding = tokenizer.batch([one.text for one in reviews], CONTEXT)
        self.lengths = (~padding).sum(1)
        self.ids, self.padding = ids.to(device), padding.to(device)
        self._pass: tuple[Any, list[Tensor]] = (None, [])
        self.labels = torch.tensor([one.label for one in reviews], device=device)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        longest = int(self.lengths[rows].max())
        rows = rows.to(self.ids.device)
        return self.ids[rows, :longest], self.padding[rows, :longest], self.labels[rows]

    def rows_of(self, step: int, size: int, among: Tensor, seed: int) -> Tensor:
        """The rows of a step: every pass in a new order, neighbours in length together."""
        per_pass = max(1, len(among) // size)
        number, place = divmod(step, per_pass)
        if self._pass[0] != (number, size, seed, len(among)):
            rng = torch.Generator().manual_seed(seed * 100_003 + number)
            order = among[torch.randperm(len(among), generator=rng)]
            # Sorted only within stretches of 16 batches, or the batches would be the same each time.
            runs = (run[self.lengths[run].argsort()] for run in order.split(16 * size))
            batches = torch.cat(list(runs)).split(size)[:per_pass]
            mixed = [batches[i] for i in torch.randperm(per_pass, generator=rng).tolist()]
            self._pass = (number, size, seed, len(among)), mixed
        return self._pass[1][place]


def hide(ids: Tensor, padding: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Runs of 1 to 3 characters to be guessed: 80 % [MASK], 10 % another, 10 % left as they are."""
    B, T = ids.shape
    start = torch.rand(B, T, device=ids.device) < MASKED / 2
    length = torch.randint(1, 4, (B, T), device=ids.device)
    where = start.clone()
    for k in (1, 2):
        where[:, k:] |= (start & (length > k))[:, :-k]
    where &= (ids >= len(SPECIAL)) & ~padding
    dice = torch.rand(B, T, device=ids.device)
    other = torch.randint(len(SPECIAL), vocabulary, (B, T), device=ids.device)
    shown = torch.where(where & (dice < 0.8), MASK, ids)
    return torch.where(where & (dice >= 0.9), other, shown), where


def pretrain(
    config: BertConfig, parts: dict[str, Part], steps: int, batch: int, folder: Path, most_s: float
) -> tuple[MaskedLanguageModel, list[dict[str, Any]]]:
    """Masked-token training on the texts alone; the weights that guess best on validation."""
    device = parts["train"].ids.device
    torch.manual_seed(0)
    model = MaskedLanguageModel(config).to(device)
    texts, everything = parts["train"], torch.arange(len(parts["train"].ids))

    def loss_of(step: int) -> Tensor:
        ids, padding, _ = texts.batch(texts.rows_of(step, batch, everything, 0))
        shown, where = hide(ids, padding, config.vocab_size)
        return F.cross_entropy(model(shown, padding, where), ids[where])

    def evaluate() -> dict[str, float]:
        torch.manual_seed(0)  # the same holes every time
        losses, right, count = 0.0, 0, 0
        for rows in torch.arange(len(parts["validation"].ids)).split(250):
            ids, padding, _ = parts["validation"].batch(rows)
            shown, where = hide(ids, padding, config.vocab_size)
            logits = model(shown, padding, where)
            losses += F.cross_entropy(logits, ids[where], reduction="sum").item()
            right += int((logits.argmax(-1) == ids[where]).sum())
            count += int(where.sum())
        return {"held_out_loss": losses / count, "guessed": right / count}

    plan = Plan(steps, max(20, steps // 30), "guessed", rate=8e-4, warmup=max(1, steps // 15))
    plan = replace(plan, seconds=most_s)
    return model, train(model, loss_of, evaluate, plan, folder, "pretraining")


def fine_tune(
    config: BertConfig,
    start: MaskedLanguageModel | None,
    parts: dict[str, Part],
    rows: Tensor,
    run: dict[str, Any],
    folder: Path,
) -> tuple[Classifier, dict[str, Any]]:
    """One run of a fixed length; what it says of validation and test, and the weights."""
    torch.manual_seed(run["seed"])
    model = Classifier(config).to(parts["train"].ids.device)
    if start is not None:
        model.bert.load_state_dict(start.bert.state_dict())
        model.bert.embeddings.requires_grad_(False)  # shipped once; most characters are rare
    size = min(run["batch"], len(rows))

    def loss_of(step: int) -> Tensor:
        ids, padding, labels = parts["train"].batch(
            parts["train"].rows_of(step, size, rows, run["seed"])
        )
        return F.cross_entropy(model(ids, padding), labels, label_smoothing=0.05)

    def evaluate() -> dict[str, float]:
        return {"validation": accuracy(predict(model, parts["validation"]), parts["validation"])}

    plan = Plan(
        run["steps"],
        run["steps"],
        "validation",
        rate=run["rate"],
        warmup=max(1, run["steps"] // 10),
    )
    train(model, loss_of, evaluate, plan, folder, folder.name)
    model.eval()
    return model, {part: predict(model, parts[part]) for part in ("validation", "test")}


@torch.inference_mode()
def predict(model: nn.Module, part: Part) -> Tensor:
    """The logits of a part, (N, 2), on the CPU; batches by length, the order restored."""
    order = part.lengths.argsort()
    logits = torch.cat([model(*part.batch(rows)[:2]).float().cpu() for rows in order.split(500)])
    return logits[order.argsort()]


def accuracy(logits: Tensor, part: Part) -> float:
    return (logits.argmax(-1) == part.labels.cpu()).float().mean().item()


def bag(
    train_: Sequence[Any], parts: dict[str, Sequence[Any]], rows: Sequence[int], c: float
) -> Any:
    """Character 1- and 2-grams, TF-IDF, logistic regression, fitted on these rows alone."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    grams = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), sublinear_tf=True, min_df=1)
    chosen = [train_[row] for row in rows]
    model = LogisticRegression(C=c, max_iter=1000)
    model.fit(grams.fit_transform([one.text for one in chosen]), [one.label for one in chosen])
    return {
        name: torch.tensor(model.predict_proba(grams.transform([one.text for one in part])))
        for name, part in parts.items()
    }


def row_of(
    arm: str, labels: int, seed: int, logits: dict[str, Tensor], truth: dict[str, Tensor]
) -> Any:
    """One line of the record; `bits` are the predictions on the test part, four a hex digit."""
    guesses = {name: values.argmax(-1) for name, values in logits.items()}
    hits = {name: int((guesses[name] == truth[name]).sum()) for name in guesses}
    low, high = wilson(hits["test"], len(truth["test"]))
    bits = "".join(map(str, guesses["test"].tolist()))
    return {
        "arm": arm,
        "labels": labels,
        "seed": seed,
        "validation": round(hits["validation"] / len(truth["validation"]), 4),
        "test": round(hits["test"] / len(truth["test"]), 4),
        "interval": [round(low, 4), round(high, 4)],
        "bits": f"{int(bits, 2):0{math.ceil(len(bits) / 4)}x}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("build/reviews"))
    parser.add_argument("--steps", type=int, default=6000, help="of pretraining, 256 reviews each")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of pretraining at most")
    parser.add_argument("--quick", action="store_true", help="a smoke test of 20 s, no result")
    parser.add_argument("--origin", choices=("real", "sample"), default="real")
    told = parser.parse_args()
    begun = time.perf_counter()
    if told.device == "cuda":
        torch.set_float32_matmul_precision("high")
    sets = {
        name: load("chinese_reviews", split=name, origin=told.origin)
        for name in ("train", "validation", "test")
    }
    if told.quick:
        sets = {name: part[:: max(1, len(part) // 200)] for name, part in sets.items()}
    train_texts = [one.text for one in sets["train"]]
    tokenizer = Characters.from_texts(train_texts, at_least=1 if told.origin == "sample" else RARE)
    sizes = (48, 96, 2, 2) if told.quick else (192, 384, 4, 4)
    config = BertConfig(len(tokenizer), *sizes, max_position_embeddings=CONTEXT)
    parts = {name: Part(part, tokenizer, told.device) for name, part in sets.items()}
    truth = {name: part.labels.cpu() for name, part in parts.items()}
    count = len(sets["train"])

    steps, batch = (20, 32) if told.quick else (told.steps, 256)
    pretrained, log = pretrain(
        config, parts, steps, batch, told.out / "pretraining", told.minutes * 60
    )
    pretrained.eval()
    about: dict[str, Any] = {
        "config": asdict(config),
        "characters": "".join(tokenizer.tokens[len(SPECIAL) :]),
        "made": {
            "recipe": "data/recipes/reviews.py",
            "device": torch.cuda.get_device_name() if told.device == "cuda" else platform.machine(),
            "torch": torch.__version__,
            "date": date.today().isoformat(),
        },
        "pretraining": [{k: v for k, v in row.items() if k != "seconds"} for row in log],
    }
    save_trained(told.out / "reviews_pretrained.safetensors", pretrained.state_dict(), about)

    curve = [(min(n or count, count), b, p, r) for n, b, p, r in CURVE]
    if told.quick:
        curve = [(20, 8, 3, 3), (count, 32, 5, 5)]
    starts: dict[str, MaskedLanguageModel | None] = {"pretrained": pretrained, "random": None}
    run_of: Callable[..., Any] = lambda arm, rows, run, name: fine_tune(  # noqa: E731
        config, starts[arm], parts, rows, run, told.out / "runs" / name
    )
    # Chosen on validation with all labels, once for the whole curve.
    _, b, *lengths = curve[-1]
    chosen: dict[str, Any] = {"trials": []}
    for (arm, trials), length in zip(TRIALS.items(), lengths, strict=True):
        for rate, share in trials[:1] if told.quick else trials:
            run = {"seed": 9, "batch": b, "steps": round(length * share), "rate": rate}
            name = f"trial-{arm}-{rate:g}-{share:g}"
            _, logits = run_of(arm, torch.arange(count), run, name)
            found = accuracy(logits["validation"], parts["validation"])
            chosen["trials"].append(
                {"arm": arm, "rate": rate, "share": share, "validation": round(found, 4)}
            )
        mine = [trial for trial in chosen["trials"] if trial["arm"] == arm]
        chosen[arm] = max(mine, key=lambda trial: trial["validation"])
    held = {name: sets[name] for name in ("validation", "test")}
    for c in (1.0, 4.0, 16.0):
        found = accuracy(
            bag(sets["train"], held, range(count), c)["validation"], parts["validation"]
        )
        chosen["trials"].append({"arm": "bag", "C": c, "validation": round(found, 4)})
    bags = [t for t in chosen["trials"] if t["arm"] == "bag"]
    chosen["bag"] = max(bags, key=lambda t: t["validation"])["C"]

    rows_found, final = [], None
    for labels, b, *lengths in curve:
        for seed in SEEDS[:1] if told.quick else SEEDS:
            rng = torch.Generator().manual_seed(seed)
            rows = torch.randperm(count, generator=rng)[:labels]
            for arm, length in zip(("pretrained", "random"), lengths, strict=True):
                best = chosen[arm]
                steps = max(2, round(length * best["share"]))
                run = {"seed": seed, "batch": b, "steps": steps, "rate": best["rate"]}
                model, logits = run_of(arm, rows, run, f"{arm}-{labels}-{seed}")
                rows_found.append(row_of(arm, labels, seed, logits, truth))
                if arm == "pretrained" and labels == count and seed == 0:
                    final = model
            if labels < count or seed == 0:  # all rows in another order give the same bag
                logits = bag(sets["train"], held, rows.tolist(), chosen["bag"])
                rows_found.append(row_of("bag", labels, seed, logits, truth))
    assert final is not None
    record = {
        "made": about["made"] | {"seconds": round(time.perf_counter() - begun)},
        "chosen": chosen,
        "curve": rows_found,
    }
    # Predictions only where all labels were used: the rest is in curve.json.
    short = [
        row
        if (row["labels"], row["seed"]) == (count, 0)
        else {k: row[k] for k in row if k != "bits"}
        for row in rows_found
    ]
    weights = {k: v for k, v in final.state_dict().items() if "embeddings" not in k}
    save_trained(told.out / "reviews.safetensors", weights, record | {"curve": short})
    (told.out / "curve.json").write_text(json.dumps(record, indent=1), "utf-8")
    for row in rows_found:
        print(*(row[k] for k in ("arm", "labels", "seed", "validation", "test")), sep="\t")
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
