"""One tiny random model a family: what the engines must be right about.

Each entry differs in something that has broken weight swapping somewhere: tied heads,
packed or stacked weights, gains stored as offsets from one, convolutions and scans,
weights passed in lists, adapters that wrap what they adapt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

VOCAB, WIDTH = 96, 32
TOKENS: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL: dict[str, Any] = TOKENS | {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SIZE = SMALL | {"intermediate_size": 48, "max_position_embeddings": 64}
GQA = SIZE | {"num_key_value_heads": 2, "head_dim": 8}


class Encoder(nn.Module):
    """nn.TransformerEncoder: packed projections, and a fused path that skips Python."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=True)
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.body = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.body(self.embed(input_ids)))


class Recurrent(nn.Module):
    """nn.LSTM: eight weights in one list argument."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.body = nn.LSTM(WIDTH, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.body(self.embed(input_ids))[0])


class Convolutional(nn.Module):
    """Convolutions, batch and group norms, a one-row head: vectors of every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=4),
            nn.GroupNorm(2, 8),
            nn.PReLU(8),
            nn.ConvTranspose2d(8, 4, 2),
            nn.Flatten(),
        )
        self.scale = nn.Parameter(torch.full((1, 4 * 5 * 5), 0.5))
        self.head = nn.Linear(4 * 5 * 5, 10)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.body(pixel_values) * self.scale)


def _lm(kind: str, **settings: Any) -> nn.Module:
    return getattr(hf, f"{kind}ForCausalLM")(getattr(hf, f"{kind}Config")(**settings))


def _adapted(kind: str) -> nn.Module:
    import peft

    if kind == "lora":
        # Random B as well: from zero, half of the adapter would not be seen to move.
        config: Any = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            target_modules=["q_proj", "v_proj"],
            init_lora_weights=False,
        )
    else:
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return peft.get_peft_model(_lm("Llama", **GQA), config)


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "opt": lambda: _lm("OPT", **SMALL, ffn_dim=48, word_embed_proj_dim=WIDTH),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(**TOKENS, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64)
    ),
    "gpt_neox": lambda: _lm("GPTNeoX", **SIZE),
    "llama": lambda: _lm("Llama", **GQA, tie_word_embeddings=True),
    "qwen3": lambda: _lm("Qwen3", **GQA),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GQA)),
    "mixtral": lambda: _lm("Mixtral", **GQA, num_local_experts=4),
    "bloom": lambda: _lm("Bloom", **TOKENS, hidden_size=WIDTH, n_layer=2, n_head=4),
    "falcon": lambda: _lm("Falcon", **SMALL),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZE)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZE)),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=VOCAB,
            d_model=WIDTH,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=0,
        )
    ),
    "vit": lambda: hf.ViTForImageClassification(
        hf.ViTConfig(**SMALL, intermediate_size=48, image_size=8, patch_size=4)
    ),
    "mamba": lambda: _lm(
        "Mamba", **TOKENS, hidden_size=WIDTH, num_hidden_layers=2, state_size=4
    ),
    "encoder": Encoder,
    "lstm": Recurrent,
    "convolutional": Convolutional,
    "lora": lambda: _adapted("lora"),
    "prefix": lambda: _adapted("prefix"),
}
GENERATING = "opt gpt2 gpt_neox llama qwen3 gemma3 mixtral bloom falcon t5 mamba lora"


@dataclass(frozen=True)
class Family:
    """A model in eval mode and a batch for it; `logits` calls one with the other."""

    name: str
    model: nn.Module
    batch: dict[str, Tensor]

    def logits(self, model: nn.Module | None = None) -> Tensor:
        out = (model or self.model)(**self.batch)
        return out if isinstance(out, Tensor) else out.logits

    def loss(self, model: nn.Module | None = None) -> Tensor:
        """Mean cross entropy in fp32 against fixed classes."""
        logits = self.logits(model).float().flatten(0, -2)
        target = torch.arange(len(logits)) % logits.shape[-1]
        return nn.functional.cross_entropy(logits, target)


def make(name: str, dtype: torch.dtype = torch.float32) -> Family:
    """The family's model, the same at every call.

    Vectors hold random multiples of 1/16 below 2, so that a step of 1/8 leaves them
    exact in bf16; matrices are random anyway. The caller's generator is not moved.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(name.encode()))
        model = MAKERS[name]().eval()
        for p in model.parameters():
            if p.numel() == max(p.shape, default=1):
                p.data += torch.randn_like(p) / 4
                p.data = (p.data.clamp(-2, 2) * 16).round() / 16
        model = model.to(dtype)
        batch: dict[str, Tensor] = {"input_ids": torch.randint(3, VOCAB, (2, 12))}
        if name in ("vit", "convolutional"):
            batch = {"pixel_values": torch.randn(2, 3, 8, 8).to(dtype)}
        if name == "t5":
            batch["decoder_input_ids"] = torch.randint(3, VOCAB, (2, 5))
    return Family(name, model, batch)
