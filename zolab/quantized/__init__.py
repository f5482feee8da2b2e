"""Learning on the grid: weights that stay in 8, 4 or 2 bits while they learn.

`pack` codes a model's matrices; what then moves is a choice of slots and of a rule:

    QZO       the scales, and no code            w = scale * code
    QuZO      the codes, by stochastic rounding; two roundings of one direction
    ZOQO      the codes, by whole levels; the sign of the difference is all it uses
"""

from zolab.quantized.pack import pack, packed_weights, unpack

__all__ = ["pack", "packed_weights", "unpack"]
