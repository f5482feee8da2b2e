"""Which weights should move: a score an element, from which `masks.top` keeps the best.

    magnitude        |w|                                     no pass
    wanda            |w| times the norm of its input         forward passes
    wanda_pp         |w| (alpha |regional gradient| + norm)  back-propagation in a block
    fisher           mean of squared gradients               back-propagation
    fisher_forward   the same from pairs of slopes           forward passes, and noise
    mazo             what freezing costs, summed over tasks  forward passes, and noise
    grasp            -w times H g, for shares of layers      forward passes, and noise

A score belongs to the stored weights: it is asked for once, before training, at no
probe. The mask that follows from it is a bit an element and stays as it is; a share of
each layer (`ratios`) needs no bits at all. Matrices only: gains and biases are a
thousandth of the weights and mostly worth moving; a slot without a mask moves whole.

    scores = wanda(Space.of(model).select("*proj*"), [lambda: loss(model, batch)])
    opt = MeZO(model, masks=masks.top(scores, 0.25, per="row"))
"""

from zolab.scores.fisher import fisher, fisher_forward
from zolab.scores.grasp import grasp, layered, ratios
from zolab.scores.mazo import mazo
from zolab.scores.mazo import score as mazo_score
from zolab.scores.passes import Estimate, curvature, magnitude
from zolab.scores.regional import wanda_pp
from zolab.scores.wanda import input_norms, wanda

__all__ = [
    "Estimate",
    "curvature",
    "fisher",
    "fisher_forward",
    "grasp",
    "input_norms",
    "layered",
    "magnitude",
    "mazo",
    "mazo_score",
    "ratios",
    "wanda",
    "wanda_pp",
]
