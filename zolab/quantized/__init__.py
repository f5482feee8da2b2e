"""Learning on the grid: weights that stay in 8, 4 or 2 bits while they learn.

`pack` codes a model's matrices; what then moves is a choice of slots and of a rule:

    QZO       the scales, and no code            w = scale * code
    QuZO      the codes, by stochastic rounding; two roundings of one direction
    ZOQO      the codes, by whole levels; the sign of the difference is all it uses
    ZeroQAT   latent weights behind the grid, and how the grid is clipped and shifted
"""

from zolab.quantized.clip import clip_search
from zolab.quantized.convert import fake_quantize, finish
from zolab.quantized.pack import pack, packed_weights, unpack
from zolab.quantized.quzo import QuZO, TwoRoundings
from zolab.quantized.qzo import QZO
from zolab.quantized.zeroqat import ZeroQAT
from zolab.quantized.zoqo import ZOQO

__all__ = [
    "QZO",
    "ZOQO",
    "QuZO",
    "TwoRoundings",
    "ZeroQAT",
    "clip_search",
    "fake_quantize",
    "finish",
    "pack",
    "packed_weights",
    "unpack",
]
