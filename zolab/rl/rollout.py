"""Prompts in, a rollout out: what a policy says, and what it knew while it said it.

    rollout(model, tokenizer, prompts, group_size=8, max_new_tokens=7, generator=0)

Two backends give the same distribution: "own" (zolab.rl.sampler) and "generate", the
library's. Either is told everything explicitly: a temperature or a top-p that is saved
with a model would make all answers of a group equal, or their log-probabilities wrong.
Both work at a probe, `with optimizer.engine.at(probe)`, and inside an engine's closure;
there `generator` should be a seed, which every probe starts anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zolab.engines.guards import eval_mode
from zolab.rl.batch import Rollout, RolloutError
from zolab.rl.sampler import Sampled, described, sample

BACKENDS = ("own", "generate")


def rollout(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    generator: torch.Generator | int,
    backend: str = "own",
) -> Rollout:
    """`group_size` completions of every prompt, drawn at `temperature`.

    `generator`: a torch generator, which moves on, or a seed. The weights, the global
    generators and the model's own generation settings are left as they were. Raises
    RolloutError for prompts that are empty or, with the answer, longer than the model
    reads: nothing is ever cut.
    """
    if not temperature > 0:
        raise RolloutError(
            f"temperature is {temperature}: greedy() takes the likeliest"
        )
    return _rollout(
        model, tokenizer, prompts, group_size, max_new_tokens, temperature, generator,
        backend,
    )  # fmt: skip


def greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    backend: str = "own",
) -> Rollout:
    """The likeliest completion of every prompt; log-probabilities at temperature 1.

    For evaluations and baselines (ReMax): its rows are no sample to learn from.
    """
    return _rollout(model, tokenizer, prompts, 1, max_new_tokens, 0.0, 0, backend)


def baseline(
    model: Any, tokenizer: Any, drawn: Rollout, *, max_new_tokens: int
) -> Rollout:
    """The likeliest answers to a rollout's prompts, a row a group, with its id."""
    first = [drawn.group.tolist().index(g) for g in drawn.group.unique().tolist()]
    rows = drawn.rows(torch.tensor(first))
    found = greedy(model, tokenizer, rows.prompts, max_new_tokens=max_new_tokens)
    return replace(found, group=rows.group)


def _rollout(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | int,
    backend: str,
) -> Rollout:
    if backend not in BACKENDS:
        raise RolloutError(f"backend is {backend!r}, expected one of {BACKENDS}")
    if group_size < 1 or max_new_tokens < 1:
        raise RolloutError(
            f"group_size {group_size} and max_new_tokens {max_new_tokens} must be >= 1"
        )
    eos = eos_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
    ids, mask = encode(tokenizer, prompts, pad=pad, device=model.device)
    check_length(model, ids.shape[1], max_new_tokens)
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    made = (sample if backend == "own" else generate)(
        model,
        ids,
        mask,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        generator=generator,
        eos=eos,
        pad=pad,
    )
    lengths = made.mask.sum(1)
    last = made.ids.gather(1, lengths[:, None] - 1).squeeze(1)
    ended = torch.isin(last, torch.tensor(eos, device=last.device)).tolist()
    said = [
        row[: n - e]
        for row, n, e in zip(made.ids.tolist(), lengths.tolist(), ended, strict=True)
    ]
    group = torch.arange(len(prompts), device=ids.device).repeat_interleave(group_size)
    return Rollout(
        prompt_ids=ids.repeat_interleave(group_size, 0),
        prompt_mask=mask.repeat_interleave(group_size, 0),
        completion_ids=made.ids,
        mask=made.mask,
        logps=made.logps,
        entropy=made.entropy,
        stop=tuple("eos" if e else "length" for e in ended),
        group=group,
        texts=decode(tokenizer, said),
        prompts=tuple(p for p in prompts for _ in range(group_size)),
        temperature=temperature or 1.0,
    )


def encode(
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    pad: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """(ids, mask), (P, L): left-padded, whatever side the tokenizer pads on; uncut."""
    if not prompts or any(not isinstance(p, str) for p in prompts):
        raise RolloutError(f"prompts is {prompts!r:.60}, expected a list of strings")
    rows = tokenizer(list(prompts), truncation=False)["input_ids"]
    if empty := [p for p, row in zip(prompts, rows, strict=True) if not row]:
        raise RolloutError(f"the prompt {empty[0]!r} has no token to go on from")
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return ids, mask.bool().to(device)


def decode(tokenizer: Any, rows: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """The texts of rows of ids, without special tokens; equal rows are read once."""
    texts = dict.fromkeys(map(tuple, rows), "")
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None or getattr(tokenizer, "clean_up_tokenization_spaces", False):
        read = tokenizer.batch_decode([*map(list, texts)], skip_special_tokens=True)
    else:  # the library's loop over rows costs more than they do
        read = fast.decode_batch([*map(list, texts)], skip_special_tokens=True)
    texts = dict(zip(texts, read, strict=True))
    return tuple(texts[tuple(row)] for row in rows)


def eos_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every id that ends an answer: a chat model may have several."""
    found: list[int] = []
    settings = getattr(model, "generation_config", None)
    for owner in (settings, getattr(model, "config", None), tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        found += [] if ids is None else ids if isinstance(ids, list | tuple) else [ids]
    if not found:
        raise RolloutError("neither the model nor its tokenizer has an EOS token")
    return tuple(dict.fromkeys(found))


def check_length(model: Any, prompt: int, new: int) -> None:
    """Raise RolloutError unless prompt and answer fit into the model's positions."""
    room = getattr(model.config, "max_position_embeddings", None)
    if room is not None and prompt + new > room:
        raise RolloutError(
            f"a prompt of {prompt} tokens and {new} new ones need {prompt + new} "
            f"positions, the model has {room}. A cut prompt would ask something else: "
            "leave it out, or lower max_new_tokens."
        )


def generate(
    model: Any,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    *,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    eos: Sequence[int],
    pad: int,
) -> Sampled:
    """What `sample` does, by the library's `generate`."""
    with eval_mode(model), _no_settings(model) as settings, torch.random.fork_rng():
        if temperature:
            seed = torch.randint(1 << 62, (), generator=generator)
            torch.manual_seed(int(seed))
        out = model.generate(
            input_ids=prompt_ids.repeat_interleave(group_size, 0),
            attention_mask=prompt_mask.repeat_interleave(group_size, 0).long(),
            generation_config=settings(
                max_new_tokens=max_new_tokens,
                do_sample=temperature > 0,
                temperature=temperature or None,
                top_k=0,  # unset it would be 50
                eos_token_id=list(eos),
                pad_token_id=pad,
                output_logits=True,
                return_dict_in_generate=True,
            ),
        )
    ids = out.sequences[:, prompt_ids.shape[1] :]
    return described(torch.stack(out.logits, 1), ids, temperature, eos)


@contextmanager
def _no_settings(model: Any) -> Iterator[Any]:
    """The model without its saved generation settings, which fill what is unset."""
    from transformers import GenerationConfig

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield GenerationConfig
    finally:
        inner.generation_config = before
