"""Why a figure is missing or has no interval, in words of the catalogue.

Records keep the technical sentence: which driver, which file, how many of what. Here it is told by
what it means to a reader, under keys ``why.*``; the sentence itself stays where one looks for it.
"""

from __future__ import annotations

import re

from workbench.wording.recorded import recorded
from workbench.wording.text import Texts

COUNTED = r"(?P<n>[\d,]+) (block|group|request|observation|document|prompt|turn|row)s?"
PATTERNS: tuple[tuple[str, str], ...] = (
    ("no_meter", r"(\w+: )?no_meter\b.*"),
    ("device_missing", r"(\w+: )?device_missing\b.*"),
    ("gap", r"(\w+: )?(gap|not_bracketed|repeated)\b.*"),
    ("clock", r"(\w+: )?clock_ahead\b.*"),
    ("counter", r"(\w+: )?(counter_reset|counter_stuck|not_conserved)\b.*"),
    ("too_short", r"(\w+: )?too_short\b.*"),
    ("dependent", r"no interval: (?P<n>[\d,]+) requests? (are|is) worth (?P<worth>[\d,]+) "
                  r"independent ones?, p[\d.]+ needs (?P<needs>[\d,]+)"),
    ("few", rf"no interval: {COUNTED}, (an interval|a bootstrap|p[\d.]+) needs (?P<needs>[\d,]+)"),
    ("few_observed", r"(?P<n>[\d,]+) were observed; p[\d.]+ needs (?P<needs>[\d,]+) for a value"),
    ("few_in_block", r"no block has the (?P<needs>[\d,]+) observations of both arms that p[\d.]+ "
                     r"needs within one; the largest has (?P<n>[\d,]+)"),
    ("together", r"p[\d.]+ is 0 in a block: .*"),
    ("none_due", r"no request of this class was due"),
    ("one_token", r"undefined for a request of one output token"),
    ("few_aa", r"(an A/A comparison|the scatter of a ratio) needs (?P<needs>[\d,]+) whole blocks, "
               r"got (?P<n>[\d,]+)"),
    ("burst", r"no interval: one burst of a few requests; .*"),
    ("one_rollback", r"no interval: one rollback; .*"),
    ("one_seed", r"no interval: one seed tells nothing of others"),
    ("of_width", r"no interval: it is made of the width of one"),
    ("no_probe", r"readiness\.probe\.enabled is false"),
    ("no_cuda", r"torch( \S+)? was built without CUDA"),
    ("no_ternary", r"no ternary model was trained in this run"),
    ("forecast_holds", r"the gate holds after the tokens of this run"),
    ("forecast_never", r"does not get there: in (?P<percent>\d+)% of the curves that fit, .*"),
    ("forecast_few", r"(?P<n>[\d,]+) (step|evaluation)s? with the threshold fully on, at least "
                     r"(?P<needs>[\d,]+).*"),
    ("no_compiler", r"no compiler was found"),
)  # fmt: skip
"""Key after ``why.``, and what the technical sentence looks like; the first that fits counts."""
_COMPILED = tuple((key, re.compile(pattern, re.DOTALL)) for key, pattern in PATTERNS)


def reason_words(reason: str, texts: Texts) -> str:
    """The reason in the language of ``texts``: what it means, or else the recorded sentence."""
    for key, pattern in _COMPILED:
        if found := pattern.fullmatch(reason.strip()):
            values = {k: int(v.replace(",", "")) for k, v in found.groupdict().items()}
            return texts(f"why.{key}", **values)
    return recorded(reason, texts).text
