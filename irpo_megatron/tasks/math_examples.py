r"""The four worked examples of the MATH prompt.

**They are ours.** The paper prompts MATH with four examples (appendix with the prompts) that our notes of it do not
have, so these were written for this project, one a subject, in the paper's format. A result to be set beside the
paper's should say so, or put the paper's four in their place.
"""

from __future__ import annotations

EXAMPLES: tuple[tuple[str, str, str], ...] = (
    (
        r"If $3x + 7 = 5x - 9$, what is the value of $x^2$?",
        r"Subtracting $3x$ from both sides gives $7 = 2x - 9$. Adding $9$ gives $16 = 2x$, so $x = 8$. "
        r"Therefore $x^2 = 8^2 = \boxed{64}$.",
        r"64",
    ),
    (
        r"What is the remainder when $7^{50}$ is divided by $10$?",
        r"The last digits of the powers of $7$ are $7, 9, 3, 1$ and then repeat with period $4$. "
        r"Since $50 = 4 \cdot 12 + 2$, the last digit of $7^{50}$ is that of $7^2 = 49$. "
        r"The remainder is $\boxed{9}$.",
        r"9",
    ),
    (
        r"A right triangle has legs of length $5$ and $12$. What is the radius of its inscribed circle?",
        r"The hypotenuse is $\sqrt{5^2 + 12^2} = \sqrt{169} = 13$, and the area is "
        r"$\frac{1}{2} \cdot 5 \cdot 12 = 30$. The area also equals the radius times half of the perimeter, which is "
        r"$\frac{5 + 12 + 13}{2} = 15$. "
        r"So the radius is $\frac{30}{15} = \boxed{2}$.",
        r"2",
    ),
    (
        r"Two fair six-sided dice are rolled. What is the probability that the sum is $9$? "
        r"Express your answer as a common fraction.",
        r"There are $6 \cdot 6 = 36$ equally likely outcomes. The sum is $9$ for $(3,6)$, $(4,5)$, $(5,4)$ and "
        r"$(6,3)$, which are $4$ outcomes. The probability is $\frac{4}{36} = \boxed{\frac{1}{9}}$.",
        r"\frac{1}{9}",
    ),
)
"""(question, solution, final answer): algebra, number theory, geometry, counting and probability."""
