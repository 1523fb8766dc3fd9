"""What texts that were not seen may come to: learnt from those that were, text by text.

With n texts alike, the next one exceeds all of them at a given place with a chance of 1 / (n + 1), whatever the
distribution: no maximum is a bound. How far it exceeds them needs an assumption. Here it is that the logarithm of a
text's largest value has an exponential upper tail (the value a Pareto one), which is wider than that of most
distributions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ditto.models.ranges import Seen, Site

Values = Mapping[Site, float]  # of one text (`Seen.values`)
RISK = 1e-4  # that one more text exceeds a learnt bound at one place
FEWEST = 8  # texts from which a tail is learnt
WIDEST = 3.0  # times what was seen: few texts say little of a tail
FOLDS = 5


def learnt(texts: Sequence[Values]) -> dict[Site, float]:
    """By place, the bound that one more such text exceeds with a chance of RISK; none of fewer than FEWEST texts.

    Of the values x_1 >= x_2 >= … of n texts and k = sqrt(n): x_(k+1) (k / (n RISK))^g, where g is the mean of
    log x_i - log x_(k+1) over i <= k (Hill's estimate of the tail, Weissman's of the quantile). At most WIDEST x_1.
    """
    if len(texts) < FEWEST:
        return {}
    n, k = len(texts), math.ceil(math.sqrt(len(texts)))
    found = {}
    for site in texts[0]:
        largest = sorted((text[site] for text in texts), reverse=True)[: k + 1]
        if not 0 < largest[k] <= largest[0] < math.inf:
            continue
        tail = math.fsum(math.log(x / largest[k]) for x in largest[:k]) / k
        found[site] = min(largest[k] * (k / (n * RISK)) ** tail, WIDEST * largest[0])
    return found


@dataclass(frozen=True)
class HeldOut:
    """Texts against ranges of the others, a fifth at a time. `over`: the part of them with a value that none of the
    others reached, without a margin; `outside`: with one beyond the range, by the margins and what is `learnt`. `most`:
    the largest ratio to what the others reached, and the place."""

    texts: int
    over: float
    outside: float
    most: float
    place: str


def held_out(texts: Sequence[Values]) -> HeldOut | None:
    """None of a single text."""
    if len(texts) < 2:
        return None
    over = outside = 0
    most, place = 0.0, ""
    folds = min(FOLDS, len(texts))
    for fold in range(folds):
        others = [text for i, text in enumerate(texts) if i % folds != fold]
        reached = {site: max(text[site] for text in others) for site in texts[0]}
        floors = learnt(others)
        wide = {site: max(x * Seen.margin(site), floors.get(site, 0.0)) for site, x in reached.items()}
        for text in texts[fold::folds]:
            over += any(x > reached[site] for site, x in text.items())
            outside += any(x > wide[site] for site, x in text.items())
            for site, x in text.items():
                ratio = x / reached[site] if 0 < reached[site] < math.inf else 0.0
                if ratio > most:
                    most, place = ratio, words_of(site)
    return HeldOut(len(texts), over / len(texts), outside / len(texts), most, place)


def words_of(site: Site) -> str:
    """A place by its layer's name, as a program has it, and what is bounded there."""
    layer, name = site
    return f"{f'layer {layer}' if layer >= 0 else 'embeddings' if layer == -1 else 'head'}, {name}"
