"""Countdown with three numbers: make the target, with any of many right answers.

    prompt  3 5 7 : 26 =  (as "357:26=")      answer  an expression, say 3*7+5, and EOS

Each number is used once; + - * and brackets. A completion is right when it says so to
an exact evaluator of integers: a parser of a dozen lines, since law 8 forbids to
execute what a model wrote. Demonstrations are true by hindsight: numbers and an
expression are drawn first, and what comes out is the target.

The split goes by (numbers as a set, target): another order of the same numbers is on
the same side. The game is that of J. Pan et al., TinyZero (2025), with fewer numbers.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from zolab.errors import ZolabError

ALPHABET = "0123456789+-*():="
DIGITS = frozenset("0123456789")
OPERATIONS = "+-*"
HELD_OUT = 8  # one puzzle in so many
LONGEST = 64  # characters of an expression that is read at all


@dataclass(frozen=True)
class Countdown:
    """Puzzles of three numbers from 1 to 9 and a target from 1 to `highest`."""

    highest: int = 99

    @property
    def max_new_tokens(self) -> int:
        """The longest answer that is needed: (a+b)*c and EOS."""
        return 8

    def prompts(self, count: int, *, seed: int, held_out: bool = False) -> list[str]:
        """`count` solvable prompts drawn with `seed`, from one side of the split."""
        rng = random.Random(f"countdown/{seed}/{held_out}")
        return [self._draw(rng, held_out)[0] for _ in range(count)]

    def demonstrations(self, count: int, *, seed: int) -> list[tuple[str, str]]:
        """(prompt, answer) pairs that are true by hindsight; none is held out."""
        rng = random.Random(f"countdown/demonstrations/{seed}")
        return [self._draw(rng, False) for _ in range(count)]

    def _draw(self, rng: random.Random, held_out: bool) -> tuple[str, str]:
        while True:
            numbers = rng.choices(range(1, 10), k=3)
            used = rng.sample(numbers, 3)
            shape = rng.choice(SHAPES)
            text = shape.format(*used, *rng.choices(OPERATIONS, k=2))
            target = value(text)
            if target is None or not 1 <= target <= self.highest:
                continue
            if is_held_out(numbers, target) == held_out:
                return f"{''.join(map(str, numbers))}:{target}=", text


SHAPES = ("{0}{3}{1}{4}{2}", "({0}{3}{1}){4}{2}", "{0}{3}({1}{4}{2})")


def is_held_out(numbers: Sequence[int], target: int) -> bool:
    """Whether this puzzle is kept for evaluation alone."""
    return zlib.crc32(f"{sorted(numbers)}{target}".encode()) % HELD_OUT == 0


def puzzle(prompt: str) -> tuple[list[int], int]:
    """The numbers and the target of "357:26="."""
    numbers, colon, target = prompt.removesuffix("=").partition(":")
    if not (colon and DIGITS.issuperset(numbers + target) and numbers and target):
        raise ZolabError(f'the prompt is {prompt!r}, expected one like "357:26="')
    return [int(c) for c in numbers], int(target)


def solves(text: str, numbers: Sequence[int], target: int) -> bool:
    """Whether the expression uses each number once and is worth the target."""
    used = [int(t) for t in tokens(text) if t.isdecimal()]
    return sorted(used) == sorted(numbers) and value(text) == target


def solved(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    stop: Sequence[str] | None = None,
    **columns: object,
) -> list[float | None]:
    """The reward: 1 for a right expression and EOS, else 0."""
    ends = stop if stop is not None else ["eos"] * len(completions)
    return [
        float(s == "eos" and solves(c, *puzzle(p)))
        for p, c, s in zip(prompts, completions, ends, strict=True)
    ]


@cache
def answers(numbers: tuple[int, ...], target: int) -> tuple[str, ...]:
    """Every right answer of the three shapes: many puzzles have a dozen."""
    found = set()
    for used in set(itertools.permutations(numbers)):
        for operations in itertools.product(OPERATIONS, repeat=2):
            for shape in SHAPES:
                text = shape.format(*used, *operations)
                if value(text) == target:
                    found.add(text)
    return tuple(sorted(found))


def tokens(text: str) -> list[str]:
    """Numbers and symbols; an empty list for anything that is no expression's text."""
    found: list[str] = []
    if len(text) > LONGEST:
        return []
    for c in text:
        if c not in ALPHABET[:-2]:  # no unicode digit is one of ours
            return []
        if c in DIGITS and found and found[-1].isdecimal():
            found[-1] += c
        else:
            found.append(c)
    # 03 is no number, and an int of many digits costs time
    bad = any(t.isdecimal() and (t[0] == "0" or len(t) > 4) for t in found)
    return [] if bad else found


def value(text: str) -> int | None:
    """What the expression is worth, exactly; None where it is none.

        sum = product (+|- product)*,  product = atom (* atom)*,  atom = number | (sum)

    A minus stands between two numbers, never before one.
    """
    rest = iter([*tokens(text), ""])
    try:
        found, last = _sum(rest, next(rest))
    except SyntaxError:
        return None
    return found if last == "" else None


def _sum(rest: Iterator[str], t: str) -> tuple[int, str]:
    total, t = _product(rest, t)
    while t in ("+", "-"):
        sign = 1 if t == "+" else -1
        term, t = _product(rest, next(rest))
        total += sign * term
    return total, t


def _product(rest: Iterator[str], t: str) -> tuple[int, str]:
    total, t = _atom(rest, t)
    while t == "*":
        factor, t = _atom(rest, next(rest))
        total *= factor
    return total, t


def _atom(rest: Iterator[str], t: str) -> tuple[int, str]:
    if t.isdecimal():
        return int(t), next(rest)
    if t != "(":
        raise SyntaxError
    found, t = _sum(rest, next(rest))
    if t != ")":
        raise SyntaxError
    return found, next(rest)
