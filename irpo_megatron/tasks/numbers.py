"""Reading one exact number from the words around it.

The rule: **the text must hold exactly one number.** Units, currency, a thousands comma and a full stop may
surround it; a second number makes the text ambiguous, and an ambiguous answer is no answer. So `18 dollars a day` is
18, while `between 3 and 5`, `5+5` and `3 hours 20 minutes` are nothing. The words are not judged: `at least 18` is 18.
Where the text holds equations, the number after the last `=` counts: `48 + 24 = 72` is 72.

Numbers are `Fraction`s: `18`, `18.0` and `36/2` are equal, `118` and `18` are not. Exponents and powers are not read
(`1e9` and `9^9` hold two runs of digits), which with the cap on the length bounds the cost for any text.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARACTERS = 200
"""Longer texts are not read; an answer of that length is a ramble or an attack."""

_NUMBER = re.compile(
    r"(?P<value>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:/(?P<divisor>[0-9]+))?"
)

# What may stand before the number: anything that ends in a space or an opening mark, then a sign and a currency in
# either order. A letter, a root, a power or another operator there would change the value. A dash with a space behind
# it (`total - 18`) may be a sign or a dash, so it is refused.
_BEFORE = re.compile(r"(?:|.*(?<!-)[\s(\[\"'*_~:#|`])(?P<sign>[-+]?)(?:[\\$€£¥₹]+\s?)?(?P<inner_sign>[-+]?)", re.DOTALL)

_SCALE = re.compile(r"(k\b|\s*(?:hundred|thousand|million|billion|trillion)\b)", re.IGNORECASE)
_SCALES = {"hundred": 10**2, "k": 10**3, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def parse_number(text: str) -> Fraction | None:
    """The one number in the text; None where there is none, more than one, or the text is too long.

    `%` is a unit, not a division (GSM8K's gold answers leave it out), while `2 million` is 2,000,000.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = text.replace("\N{MINUS SIGN}", "-").rpartition("=")[2]
    number = _NUMBER.search(text)
    if number is None:
        return None
    before, after = text[: number.start()], text[number.end() :]
    # `isnumeric` also knows `²`, `½` and digits of other scripts, each of which would be a second number.
    if any(character.isnumeric() for character in before + after):
        return None
    lead = _BEFORE.fullmatch(before)
    if lead is None or (lead["sign"] and lead["inner_sign"]):
        return None
    divisor = int(number["divisor"] or 1)
    if divisor == 0:
        return None
    value = Fraction(number["value"].replace(",", "")) / divisor
    if scale := _SCALE.match(after):
        value *= _SCALES[scale[1].strip().lower()]
    return -value if "-" in (lead["sign"], lead["inner_sign"]) else value
