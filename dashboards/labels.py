"""Labels and numbers as tables, sentences and axes show them."""

from __future__ import annotations

import math
import re

from orchestration.terminal.format import format_value
from orchestration.tracking.schema import PEAK_MIB, PEAK_SHARE, STEP_MS, TRAIN_S

LONGEST_TEXT = 60
"""Characters of a value that tables, sentences and figures show."""
TITLES = {
    "fid": "FID",
    "kid": "KID",
    "kid_error": "standard error of KID",
    "cmmd": "CMMD",
    "class_consistency": "class consistency",
    TRAIN_S: "training time [s]",
    STEP_MS: "time per step [ms]",
    PEAK_MIB: "peak memory [MiB]",
    PEAK_SHARE: "share of peak FLOP/s",
    "wall_s": "wall-clock time [s]",
}


def title(metric: str) -> str:
    """Format a metric's name for sentences and axes."""
    if match := re.fullmatch(r"(fid|kid|kid_error|cmmd|class_consistency)_(\d+)nfe", metric):
        return f"{TITLES[match[1]]} at {match[2]} NFE"
    return TITLES.get(metric, shorten(metric))


def display(value: object) -> str:
    """Format a value in short; "–" if it is missing."""
    if value is None or value != value:
        return "–"
    return shorten(format_value(value))


def shorten(text: object, longest: int = LONGEST_TEXT) -> str:
    text = str(text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def thousands(number: str) -> str:
    """Group the digits of a whole number; shorten any other text."""
    return f"{int(number):,}" if number.isdecimal() else shorten(number)


def with_interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """Format an estimate with its interval, which is left out if NaN; large numbers without an exponent."""
    value, low, high = (f"{float(f'{number:.{digits}g}'):.12g}" for number in (value, low, high))
    return value if low == "nan" else f"{value} [{low}, {high}]"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def p_value(p: float) -> str:
    return "–" if math.isnan(p) else f"{p:.2g}"


def one_line_reason(error: BaseException, longest: int = LONGEST_TEXT) -> str:
    """Format an exception as one short line."""
    return shorten(" ".join(str(error).split()) or type(error).__name__, longest)
