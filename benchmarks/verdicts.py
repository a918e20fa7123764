"""How often are verdicts of the ledger wrong, how much do they find, and with how many seeds?

Simulates ledgers with the designs of experiments/claims.yaml: as in experiments/claims.py, every study starts with its
first look and gets its next look while it has undecided claims. A verdict that was wrong at any time counts, also if it
was corrected later. Log ratios of a study are correlated by 0.5, as if its claims shared a case, and scatter by 3 to
35 % over seeds.

Then the seeds that one claim needs: with two ways of spending the error rate, with confidence sequences that hold at
every number of seeds, and with a number of seeds fixed in advance.

$ python benchmarks/verdicts.py
$ python benchmarks/verdicts.py --ledgers 500     # a quick look
"""

from __future__ import annotations

import argparse
import functools
import math
from pathlib import Path

import numpy as np
from scipy import stats

from dashboards.claims.ledger import Ledger, read_ledger
from dashboards.claims.looks import Question, p_values
from dashboards.comparison.exponents import MARGIN
from soflow.statistics import LEVEL

CLAIMS = Path(__file__).parents[1] / "experiments" / "claims.yaml"
CORRELATION = 0.5
LEAST, MOST = 0.03, 0.35
"""Range of the scatter of log ratios over seeds, from which each claim's is drawn log-uniformly."""
REPETITIONS = 20_000
"""Simulated claims per row of the tables of power."""


def calls(question: Question, ns: tuple[int, ...], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answer a question for many rows of values at once.

    Args:
        ns: numbers of values at the looks.
        values: [rows, values].

    Returns:
        p-values [rows, looks] of the call at each look, and calls [rows, looks]: −1 below, 0 inside, 1 above. The call
        at a look is that with the lowest p-value up to it.
    """
    ps, found = [], []
    for index, n in enumerate(ns):
        mean, error = values[:, :n].mean(axis=1), values[:, :n].std(axis=1, ddof=1) / math.sqrt(n)
        outside, within = p_values(question, ns, index, mean, error)
        ps.append(np.minimum(outside, within))
        found.append(np.where(within <= outside, 0, np.sign(mean)))
    return np.stack(ps, axis=1), np.stack(found, axis=1)


def simulate(ledger: Ledger, effect: float, number: int, generator: np.random.Generator) -> tuple[int, float, float]:
    """Simulate ledgers whose claims all have the same true effect, in units of the smallest effect.

    Returns:
        Number of ledgers with a wrong verdict at any time, share of claims decided, mean seeds of a claim's study.
    """
    studies = []
    for study in ledger.studies:
        shared = generator.standard_normal((number, 1, study.looks[-1]))
        own = generator.standard_normal((number, len(study.claims), study.looks[-1]))
        scatter = np.exp(generator.uniform(math.log(LEAST), math.log(MOST), (number, len(study.claims), 1)))
        noise = scatter * (math.sqrt(CORRELATION) * shared + math.sqrt(1 - CORRELATION) * own)
        ps, found, truths = [], [], []
        for index, claim in enumerate(study.claims):
            is_exponent = claim.exponent is not None
            margin = MARGIN if is_exponent else math.log(study.smallest_of(claim))
            question = Question(margin, study.looks[-1], null=margin if is_exponent else 0.0, spending=study.spending)
            p, call = calls(question, study.looks, noise[:, index] + effect * margin)
            ps.append(p)
            found.append(call)
            # Calls that are right: inside the margin, its ends included for an exponent, and the sign.
            right = {0} if effect == 0 or (is_exponent and effect <= 1) else {1} | ({0} if effect < 1 else set())
            truths.append(right)
        studies.append((study, np.stack(ps, axis=1), np.stack(found, axis=1), truths))
    wrong, decided, seeds = np.zeros(number, dtype=bool), np.zeros(number), np.zeros(number)
    for study, ps, found, truths in studies:
        level = study.level
        lowest, call = np.full(ps.shape[:2], np.inf), np.zeros(ps.shape[:2])
        stopped = np.zeros(number, dtype=bool)
        for look, n in enumerate(study.looks):
            lower = (ps[:, :, look] < lowest) & ~stopped[:, None]
            lowest, call = np.where(lower, ps[:, :, look], lowest), np.where(lower, found[:, :, look], call)
            right = np.stack([np.isin(call[:, index], list(truth)) for index, truth in enumerate(truths)], axis=1)
            wrong |= ((lowest <= level) & ~right).any(axis=1)
            before = stopped
            stopped = stopped | (lowest <= level).all(axis=1) | (look + 1 == len(study.looks))
            seeds += n * len(study.claims) * (stopped & ~before)
        decided += (lowest <= level).sum(axis=1)
    claims = sum(len(study.claims) for study in ledger.studies)
    return int(wrong.sum()), float(decided.mean()) / claims, float(seeds.mean()) / claims


@functools.cache
def seeds_and_power(spending: str, scatter: float, effect: float, level: float, looks: tuple[int, ...]) -> tuple:
    """Simulate one claim; return the share decided, the share with a direction, and the mean number of seeds.

    Args:
        spending: pocock, obrien_fleming, "fixed" (all seeds, one look) or "any time" (confidence sequences).
        effect: true log ratio; the margin is log 1.25.
    """
    generator, margin = np.random.default_rng(1), math.log(1.25)
    values = effect + scatter * generator.standard_normal((REPETITIONS, looks[-1]))
    if spending == "any time":
        ps, found = _any_time(values, looks, margin)
    elif spending == "fixed":
        ps, found = calls(Question(margin, looks[-1]), looks[-1:], values)
        looks = looks[-1:]
    else:
        ps, found = calls(Question(margin, looks[-1], spending=spending), looks, values)
    done = np.minimum.accumulate(ps, axis=1) <= level
    ended = np.where(done.any(axis=1), done.argmax(axis=1), len(looks) - 1)
    seeds = np.array(looks)[ended].mean()
    directed = (found[np.arange(len(found)), ended] != 0) & done.any(axis=1)
    return done.any(axis=1).mean(), directed.mean(), float(seeds)


def _any_time(values: np.ndarray, looks: tuple[int, ...], margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute the same from e-processes: Student's likelihood ratio with a normal mixture over effect sizes.

    Their inverse is a p-value at every number of seeds (Wang and Ramdas, arXiv 2310.03722). The standard deviation of
    the mixture, 1, suits effects of one standard deviation.
    """
    ps, found = [], []
    for n in looks:
        mean, error = values[:, :n].mean(axis=1), values[:, :n].std(axis=1, ddof=1) / math.sqrt(n)

        def inverse(t: np.ndarray, n: int = n) -> np.ndarray:
            ratio, weight = t**2 / (n - 1), 1 / (n + 1)
            return np.sqrt(n + 1) * ((1 + weight * ratio) / (1 + ratio)) ** (n / 2)

        outside = np.minimum(1, inverse(mean / error))
        gap = (margin - np.abs(mean)) / error
        within = np.where(gap > 0, np.minimum(1, inverse(gap)), 1)  # two-sided: at most twice as high as needed
        ps.append(np.minimum(outside, within))
        found.append(np.where(within < outside, 0, np.sign(mean)))
    return np.stack(ps, axis=1), np.stack(found, axis=1)


def other_distributions(
    looks: tuple[int, ...], levels: tuple[float, ...], number: int = 200_000
) -> dict[str, list[float]]:
    """Simulate wrong directions as multiples of each level, if log ratios with mean 0 are not normal."""
    generator = np.random.default_rng(2)
    shape = (number, looks[-1])
    scatter, outliers = 0.3 * generator.standard_normal(shape), math.log(10) * (generator.random(shape) < 0.2)
    made = {
        "normal": generator.standard_normal(shape),
        "uniform": generator.uniform(-1, 1, shape),
        "one run in five of one case ten times worse, the others scatter by 30 %": scatter
        + outliers
        - 0.2 * math.log(10),
    }
    found = {}
    for name, values in made.items():
        ps, called = calls(Question(1e-9, looks[-1]), looks, values)  # nothing counts as equivalent
        lowest = np.where(called != 0, ps, 1).min(axis=1)
        found[name] = [float((lowest <= level).mean()) / level for level in levels]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ledgers", type=int, default=10_000, help="simulated ledgers for each true effect")
    number = parser.parse_args().ledgers
    ledger = read_ledger(CLAIMS)
    generator = np.random.default_rng(0)
    print(f"{number:,} ledgers of {sum(len(study.claims) for study in ledger.studies)} claims each\n")
    print(
        "| true effect, in smallest effects | ledgers with a wrong verdict [95 %] | claims decided "
        "| seeds of their study |"
    )
    print("|---|---|---|---|")
    for effect in (0.0, 0.5, 1.0, 1.5):
        wrong, decided, seeds = simulate(ledger, effect, number, generator)
        interval = stats.binomtest(wrong, number).proportion_ci(method="exact")
        share = f"{100 * wrong / number:.2f} % [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
        print(f"| {effect:g} | {share} | {100 * decided:.0f} % | {seeds:.1f} |", flush=True)
    looks, level = (5, 10, 16, 24), LEVEL / 10 / 5
    print(f"\nOne claim, smallest effect × 1.25, looks at {looks}, level {level:g} (its share in a study of five)\n")
    print("| true ratio | scatter | spending | decided | direction | seeds |")
    print("|---|---|---|---|---|---|")
    for ratio, scatter in ((1.25, 0.1), (1.25, 0.2), (1.5, 0.2), (2.0, 0.35), (1.0, 0.1), (1.0, 0.2)):
        for spending in ("pocock", "obrien_fleming", "any time", "fixed"):
            decided, directed, seeds = seeds_and_power(spending, scatter, math.log(ratio), level, looks)
            cells = (f"{ratio:g}", f"{scatter:g}", spending, f"{100 * decided:.0f} %", f"{100 * directed:.0f} %")
            print(f"| {' | '.join(cells)} | {seeds:.1f} |", flush=True)
    for study in (study for study in ledger.studies if study.experiment in ("ablations", "scale_test")):
        share = study.level
        decided = [seeds_and_power("pocock", 0.2, math.log(ratio), share, study.looks)[0] for ratio in (1.25, 1)]
        shares = " and ".join(f"{100 * share:.0f} %" for share in decided)
        print(f"\n{study.experiment}, scatter 0.2: {shares} decided with true ratios 1.25 and 1")
    levels = (0.001, 1 / 3000)
    print("\n| log ratios | level 0.001 | level 1/3000 |\n|---|---|---|")
    for name, multiples in other_distributions(looks, levels).items():
        print(f"| {name} | {' | '.join(f'{multiple:.2g}' for multiple in multiples)} |")


if __name__ == "__main__":
    main()
