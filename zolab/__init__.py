"""zolab: train language models with forward passes only, when memory is the limit.

    import zolab
    model, tokenizer = zolab.load_model("tiny")
    opt = zolab.MeZO(model, lr=1e-4, eps=1e-3, journal="run.zolab")
    loss = opt.step(lambda: model(**batch).loss)

Nothing heavy is imported until it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from zolab.coordinates import Coordinates
    from zolab.empty import empty_weights, random_weights, weights_in
    from zolab.engines import Resident
    from zolab.errors import ZolabError
    from zolab.estimators import (
        CGE,
        FZOO,
        SPSA,
        SVRG,
        Conservative,
        EvolutionStrategy,
        ForwardGradient,
        HiZOO,
        ModuleWise,
        OneSided,
        RankSGD,
    )
    from zolab.families import Blocks, LowRank, Subspace
    from zolab.gradient import Direction, Probe, Update, ZOGradient
    from zolab.journal import Journal
    from zolab.models import load_model
    from zolab.noise import direction, make_key
    from zolab.optimizers import (
        SGD,
        Adam,
        AdaMU,
        Dense,
        Floored,
        MeZO,
        Momentum,
        SignSGD,
        ZOOptimizer,
        replay,
    )
    from zolab.quantized import QZO, ZOQO, QuZO
    from zolab.quantized.pack import pack, packed_weights, unpack
    from zolab.space import Space
    from zolab.suggestion import Suggestion, suggest

_WHERE = {
    "Resident": "engines",
    "ZolabError": "errors",
    "CGE": "estimators",
    "Conservative": "estimators",
    "EvolutionStrategy": "estimators",
    "FZOO": "estimators",
    "ForwardGradient": "estimators",
    "HiZOO": "estimators",
    "ModuleWise": "estimators",
    "OneSided": "estimators",
    "RankSGD": "estimators",
    "SPSA": "estimators",
    "SVRG": "estimators",
    "Coordinates": "coordinates",
    "Blocks": "families",
    "LowRank": "families",
    "Subspace": "families",
    "Rounded": "families",
    "Population": "engines.population",
    "Streamed": "engines.streamed",
    "empty_weights": "empty",
    "random_codes": "empty",
    "random_weights": "empty",
    "load_packed": "formats",
    "save_as_read": "formats",
    "save_packed": "formats",
    "weights_in": "empty",
    "lm_loss": "tasks.language",
    "Direction": "gradient",
    "Probe": "gradient",
    "Update": "gradient",
    "ZOGradient": "gradient",
    "Journal": "journal",
    "load_model": "models",
    "direction": "noise",
    "make_key": "noise",
    "SGD": "optimizers",
    "AdaMU": "optimizers",
    "Adam": "optimizers",
    "Dense": "optimizers",
    "Floored": "optimizers",
    "MeZO": "optimizers",
    "Momentum": "optimizers",
    "SignSGD": "optimizers",
    "ZOOptimizer": "optimizers",
    "replay": "optimizers",
    "pack": "quantized",
    "unpack": "quantized",
    "ZeroQAT": "quantized",
    "fake_quantize": "quantized",
    "packed_weights": "quantized",
    "QZO": "quantized",
    "QuZO": "quantized",
    "ZOQO": "quantized",
    "Space": "space",
    "Suggestion": "suggestion",
    "suggest": "suggestion",
}

__all__ = [
    "CGE",
    "FZOO",
    "QZO",
    "SGD",
    "SPSA",
    "SVRG",
    "ZOQO",
    "AdaMU",
    "Adam",
    "Blocks",
    "Conservative",
    "Coordinates",
    "Dense",
    "Direction",
    "EvolutionStrategy",
    "Floored",
    "ForwardGradient",
    "HiZOO",
    "Journal",
    "LowRank",
    "MeZO",
    "ModuleWise",
    "Momentum",
    "OneSided",
    "Population",
    "Probe",
    "QuZO",
    "RankSGD",
    "Rounded",
    "Resident",
    "SignSGD",
    "Space",
    "Streamed",
    "Subspace",
    "Suggestion",
    "Update",
    "ZOGradient",
    "ZOOptimizer",
    "ZeroQAT",
    "ZolabError",
    "direction",
    "empty_weights",
    "fake_quantize",
    "lm_loss",
    "load_model",
    "load_packed",
    "make_key",
    "pack",
    "packed_weights",
    "random_codes",
    "random_weights",
    "replay",
    "save_as_read",
    "save_packed",
    "suggest",
    "unpack",
    "weights_in",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"zolab has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"zolab.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
