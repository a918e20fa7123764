"""How often are verdicts of the ledger wrong, how much do they find, and with how many seeds?

Simulates ledgers with the designs of experiments/claims.yaml: every claim has its first look, and its next one while it
is undecided. (In experiments/claims.py a decided claim gets more seeds if it shares its cases with an undecided one.)
Log ratios scatter over seeds, and are correlated within a study, as in the last real ledger, docs/claims.json.

Then the seeds that one claim needs: with two ways of spending the error rate, with confidence sequences that hold at
every number of seeds, and with a number of seeds fixed in advance.

$ python benchmarks/verdicts.py
$ python benchmarks/verdicts.py --ledgers 500     # a quick look
"""

from __future__ import annotations

import argparse
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from dashboards.claims.ledger import Study, read_ledger
from dashboards.claims.looks import Question, p_values
from dashboards.comparison.exponents import MARGIN
from soflow.statistics import LEVEL

ROOT = Path(__file__).parents[1]
CLAIMS = ROOT / "experiments" / "claims.yaml"
MEASURED = ROOT / "docs" / "claims.json"
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


@dataclass(frozen=True)
class Noise:
    """How the values of a study's claims scatter over seeds.

    Attributes:
        scatter: [claims], standard deviations over all seeds of a claim.
        mixing: [claims, common seeds], rows of length 1 whose products are the correlations between claims, measured
            on the seeds that all claims have.
    """

    scatter: np.ndarray
    mixing: np.ndarray

    def draw(self, number: int, seeds: int, generator: np.random.Generator) -> np.ndarray:
        """Draw values with mean 0, normal and independent between seeds: [number, claims, seeds]."""
        normal = generator.standard_normal((number, self.mixing.shape[1], seeds))
        return self.scatter[:, None] * np.einsum("cm,nms->ncs", self.mixing, normal)


def measured_noise(study: Study, measured: Mapping[str, dict]) -> Noise:
    """Estimate a study's noise from what all studies have measured, read from the ledger's JSON."""
    evidence = measured[study.experiment]["evidence"]
    by_claim = []
    for claim in study.claims:
        if claim.test not in evidence:
            raise SystemExit(f"{MEASURED}: has no values of {claim.test}; run `make studies`")
        values = evidence[claim.test]["values"]
        by_claim.append(
            {seed: value[0] if claim.exponent else math.log(value[0] / value[1]) for seed, value in values.items()}
        )
    common = sorted(set.intersection(*(set(values) for values in by_claim)))
    rows = np.array([[values[seed] for seed in common] for values in by_claim])
    rows -= rows.mean(axis=1, keepdims=True)
    scatter = np.array([np.std(list(values.values()), ddof=1) for values in by_claim])
    return Noise(scatter, rows / np.linalg.norm(rows, axis=1, keepdims=True))


@dataclass(frozen=True)
class Simulated:
    """What became of the same study in all simulated ledgers.

    Attributes:
        wrong: [ledgers], True where any claim has a wrong verdict.
        decided: [claims], share of ledgers in which a claim is decided.
        right: [claims], share in which it is decided rightly.
        seeds: mean number of seeds of a claim.
    """

    wrong: np.ndarray
    decided: np.ndarray
    right: np.ndarray
    seeds: float


def simulate(study: Study, noise: Noise, effect: float, number: int, generator: np.random.Generator) -> Simulated:
    """Simulate a study whose claims all have the same true effect, in units of the smallest effect."""
    values = noise.draw(number, study.looks[-1], generator)
    ps, right = [], []
    for index, claim in enumerate(study.claims):
        is_exponent = claim.exponent is not None
        margin = MARGIN if is_exponent else math.log(study.smallest_of(claim))
        question = Question(margin, study.looks[-1], null=margin if is_exponent else 0.0, spending=study.spending)
        p, call = calls(question, study.looks, values[:, index] + effect * margin)
        # Calls that are right: inside the margin, its ends included for an exponent, and the sign.
        truths = {0} if effect == 0 or (is_exponent and effect <= 1) else {1} | ({0} if effect < 1 else set())
        ps.append(p)
        right.append(np.isin(call, list(truths)))
    p, is_right = (np.stack(each, axis=1) for each in (ps, right))  # [ledgers, claims, looks]
    lowest, holds = np.full(p.shape[:2], np.inf), np.ones(p.shape[:2], dtype=bool)
    seeds = np.zeros(p.shape[:2])
    for look, n in enumerate(study.looks):
        undecided = lowest > study.level
        lower = (p[:, :, look] < lowest) & undecided
        lowest, holds = np.where(lower, p[:, :, look], lowest), np.where(lower, is_right[:, :, look], holds)
        seeds[undecided] = n
    decided = lowest <= study.level
    wrong = (decided & ~holds).any(axis=1)
    return Simulated(wrong, decided.mean(axis=0), (decided & holds).mean(axis=0), float(seeds.mean()))


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
    measured = json.loads(MEASURED.read_text())["studies"]
    noises = {study.experiment: measured_noise(study, measured) for study in ledger.studies}
    generator = np.random.default_rng(0)
    print(f"{number:,} ledgers of {sum(len(study.claims) for study in ledger.studies)} claims each\n")
    print("| true effect, in smallest effects | ledgers with a wrong verdict [95 %] | claims decided | seeds |")
    print("|---|---|---|---|")
    by_effect = {}
    for effect in (0.0, 0.5, 1.0, 1.5):
        studies = [simulate(study, noises[study.experiment], effect, number, generator) for study in ledger.studies]
        by_effect[effect] = studies
        wrong = int(np.any([study.wrong for study in studies], axis=0).sum())
        interval = stats.binomtest(wrong, number).proportion_ci(method="exact")
        share = f"{100 * wrong / number:.2f} % [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
        decided = np.concatenate([study.decided for study in studies])
        seeds = np.repeat([study.seeds for study in studies], [len(study.decided) for study in studies])
        print(f"| {effect:g} | {share} | {100 * decided.mean():.0f} % | {seeds.mean():.1f} |", flush=True)
    print("\n| study | claims of ratios | scatter | correlation | found | lowest | called equivalent |")
    print("|---|---|---|---|---|---|---|")
    for index, study in enumerate(ledger.studies):
        ratios = [not claim.exponent for claim in study.claims]
        if any(ratios):
            noise = noises[study.experiment]
            between = np.abs((noise.mixing @ noise.mixing.T)[np.triu_indices(len(study.claims), 1)])
            correlation = f"{np.median(between):.2f}" if len(between) else "–"
            found, equivalent = (100 * by_effect[effect][index].right[ratios] for effect in (1.0, 0.0))
            shares = (found.mean(), found.min(), equivalent.mean())
            row = (sum(ratios), f"{np.median(noise.scatter[ratios]):.2g}", correlation)
            print(f"| {' | '.join(map(str, (study.experiment, *row, *(f'{share:.0f} %' for share in shares))))} |")
    looks, level = (5, 10, 16, 24), LEVEL / 10 / 5
    print(f"\nOne claim, smallest effect × 1.25, looks at {looks}, level {level:g} (its share in a study of five)\n")
    print("| true ratio | scatter | spending | decided | direction | seeds |")
    print("|---|---|---|---|---|---|")
    for ratio, scatter in ((1.25, 0.1), (1.25, 0.2), (1.5, 0.2), (2.0, 0.35), (1.0, 0.1), (1.0, 0.2)):
        for spending in ("pocock", "obrien_fleming", "any time", "fixed"):
            decided, directed, seeds = seeds_and_power(spending, scatter, math.log(ratio), level, looks)
            cells = (f"{ratio:g}", f"{scatter:g}", spending, f"{100 * decided:.0f} %", f"{100 * directed:.0f} %")
            print(f"| {' | '.join(cells)} | {seeds:.1f} |", flush=True)
    levels = (0.001, 1 / 3000)
    print("\n| log ratios | level 0.001 | level 1/3000 |\n|---|---|---|")
    for name, multiples in other_distributions(looks, levels).items():
        print(f"| {name} | {' | '.join(f'{multiple:.2g}' for multiple in multiples)} |")


if __name__ == "__main__":
    main()
