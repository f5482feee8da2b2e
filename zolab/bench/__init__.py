"""Speed, memory and precision beside their physical limit, their target and a peer.

    python -m zolab.bench [step|memory|precision|journal|all]
        [--device cpu|cuda] [--shape opt-125m] [--out DIR]
    python -m zolab.bench estimators [--help]   every estimator beside its own passes
    python -m zolab.bench methods [--help]      MeZO beside AdamW, LoRA and QLoRA
    python -m zolab.bench suggestion [--help]   zolab.suggest's lr beside a sweep
    python -m zolab.bench peak [--help]         every method's peak beside zolab.plan's
    python -m zolab.bench table [--help]        chapter 14: eleven methods, held out

Every item prints its ratios and writes a record (numbers, machine, versions, commit,
load) that the chapters read. On a GPU the default shape is opt-1.3b in bf16.
"""
