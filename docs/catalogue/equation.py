"""The formulas of the blocks' docstrings as HTML with MathML, which browsers draw by themselves.

The docstrings mix formulas and prose: `y = x * sigmoid(W2 z), W1: (c // reduction, c)`. A word of
two letters or more is prose unless it is called, has a subscript or is an argument of the block.
"""

import html
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

GREEK = {
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "eps": "ε",
    "lambda": "λ",
    "sigma": "σ",
}
WORDS = ("With", "When", "What", "Which", "Where", "We")  # not a matrix W of something
OPERATORS = {
    "->": "→",
    "<=": "≤",
    ">=": "≥",
    "!=": "≠",
    "**": "^",
    "*": "∗",
    "-": "\N{MINUS SIGN}",
    "...": "…",
}
_TOKEN = re.compile(
    r"""(?P<code>`[^`]*`)
    |(?P<text>"[^"]*")
    |(?P<times>\d+x\d+)
    |(?P<number>\d+(?:,\d{3})*(?:\.\d+)?(?:e-?\d+)?)
    |(?P<word>[A-Za-z]{2,}(?:-[A-Za-z]+)+|[A-Za-z]{2,}'s?(?![A-Za-z]))
    |(?P<name>[A-Za-z][A-Za-z0-9]*(?:_[A-Za-z0-9]+)*'?)
    |(?P<under>_(?=[({])|_[A-Za-z0-9]+)
    |(?P<power>\^(?:-?\d+(?:/\d+)?|[A-Za-z]\b)?)
    |(?P<op>\.\.\.|\.\.|//|->|<=|>=|!=|\*\*|[-+*/=<>|&])
    |(?P<open>[(\[{])
    |(?P<close>[)\]}])
    |(?P<space>\s+)
    |(?P<other>.)""",
    re.VERBOSE,
)


class Token(NamedTuple):
    """A piece of a docstring."""

    kind: str
    text: str
    spaced: bool  # whether white space precedes it


class Item(NamedTuple):
    """A piece of the result: HTML text, or a MathML element."""

    markup: str
    math: bool
    breaks: bool = False  # a line may break before it
    prose: bool = False  # contains words
    group: str = ""  # of a group in parentheses: what it contains


def render(text: str, arguments: Sequence[str] = ()) -> str:
    """HTML of a docstring's section: a `<p>` for every clause.

    Args:
        text: the section, such as `describe("se").math`.
        arguments: names of the block's arguments, shown as they are.
    """
    clauses = _clauses(" ".join(text.split()))
    return "".join(f"<p>{inline(clause, arguments)}</p>\n" for clause in clauses)


def _clauses(text: str) -> Iterator[str]:
    """The text, cut after semicolons and sentences, but not within brackets."""
    start = depth = 0
    for match in re.finditer(r"[(\[{]|[)\]}]|;\s+|(?<=[a-z)`\"])\.\s+(?=[A-Z])", text):
        sign = match[0].strip()
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and sign in ";.":
            yield text[start : match.end()].strip()
            start = match.end()
    yield text[start:]


def inline(text: str, arguments: Sequence[str] = ()) -> str:
    """HTML of a piece of a section, in one line."""
    return _joined(_Parser(text, frozenset(arguments)).items())


def _joined(items: Sequence[Item]) -> str:
    """Neighboring MathML elements in one `<math>`, from one place for a break to the next."""
    parts: list[str] = []
    run: list[str] = []

    def end() -> None:
        if run:
            parts.append(f"<math><mrow>{''.join(run)}</mrow></math>")
            run.clear()

    for item in items:
        if item.breaks and run:
            end()
            parts.append(" ")
        if item.math:
            run.append(item.markup)
        else:
            end()
            parts.append(item.markup)
    end()
    return "".join(parts).strip()


class _Parser:
    """Reads tokens once, from left to right; a group in brackets is a sequence of its own."""

    def __init__(self, text: str, arguments: frozenset[str]) -> None:
        self.tokens = list(_tokens(text))
        self.arguments = arguments
        self.at = 0

    def items(self, closing: str = "") -> list[Item]:
        """Items up to the closing bracket, or to the end."""
        items: list[Item] = []
        while self.at < len(self.tokens):
            token = self.tokens[self.at]
            if closing and token.text == closing:
                break
            self.at += 1
            self._add(items, token, bool(closing))
        return items

    def _add(self, items: list[Item], token: Token, nested: bool) -> None:
        start = len(items)
        self._append(items, token, nested)
        if token.spaced and 0 < start < len(items):
            left, right = items[start - 1], items[start]
            if not (left.math and right.math):
                items.insert(start, Item(" ", False))

    def _append(self, items: list[Item], token: Token, nested: bool) -> None:
        if token.kind == "op" and token.text in ("/", "//") and items and items[-1].math:
            self._divide(items, token)
        elif token.kind == "op" and token.text == "|":
            items.append(self._scripted(Item('<mo stretchy="false">|</mo>', True), token))
        elif token.kind == "op":
            sign = OPERATORS.get(token.text, token.text)
            binary = bool(items) and token.spaced
            form = "infix" if binary else "prefix"
            markup = f'<mo form="{form}">{html.escape(sign)}</mo>'
            items.append(Item(markup, True, breaks=binary and not nested and token.text in "=+->"))
        else:
            items.append(self._scripted(self._operand(token, items), token))

    def _divide(self, items: list[Item], token: Token) -> None:
        """`a / b` as a fraction, `a // b` as its floor."""
        if self.at >= len(self.tokens):
            items.append(Item(html.escape(token.text), False))
            return
        above = items.pop()
        following = self.tokens[self.at]
        self.at += 1
        below = self._scripted(self._operand(following, []), following)
        over, under = above.group or above.markup, below.group or below.markup
        fraction = f"<mfrac><mrow>{over}</mrow><mrow>{under}</mrow></mfrac>"
        if token.text == "//":
            fraction = f"<mrow><mo>⌊</mo>{fraction}<mo>⌋</mo></mrow>"
        items.append(Item(fraction, True, above.breaks))

    def _operand(self, token: Token, before: Sequence[Item]) -> Item:
        kind, text = token.kind, token.text
        if kind == "code":
            return Item(f"<code>{html.escape(text[1:-1])}</code>", False)
        if kind == "number":
            return Item(f"<mn>{text}</mn>", True, breaks=not _follows_math(before))
        if kind == "word":
            return Item(html.escape(text, quote=False), False, prose=True)
        if kind == "times":
            return Item(text.replace("x", "×"), False, prose=True)
        if kind == "name":
            return self._name(token, before)
        if kind == "open":
            return self._group(token)
        if kind == "space":
            return Item(" ", False)
        if text == "." and token.spaced:
            return Item("<mo>·</mo>", True)
        return Item(html.escape(text), False)

    def _name(self, token: Token, before: Sequence[Item]) -> Item:
        text = token.text
        following = self.tokens[self.at] if self.at < len(self.tokens) else Token("", "", False)
        called = following.kind in ("open", "under", "power") and not following.spaced
        if text == "x" and self._between_sizes(following):
            return Item("<mo>×</mo>", True)
        if text in self.arguments and (len(text) > 1 or not called):
            shown = f"<mi>{text}</mi>" if len(text) == 1 else f"<mtext>{text}</mtext>"
            return Item(shown, True)
        article = text in ("a", "A") and (
            following.kind == "word"
            or (following.kind == "name" and len(following.text) > 2)
            or (following.kind == "open" and following.spaced and bool(before) and before[-1].prose)
        )
        if text == "sum" and following.kind == "name" and len(following.text) <= 2:
            return Item("<mo>∑</mo>", True)
        word = text.isalpha() and len(text) > 1 and not called and text not in GREEK
        matrix = re.fullmatch(r"W[a-z]{1,4}|b[hw]", text) and text not in WORDS
        if article or (word and not text.isupper() and not matrix):
            return Item(html.escape(text), False, prose=True)
        if text == "sqrt" and following.text == "(":
            self.at += 1
            inside = _joined_math(self.items(")"))
            self.at += 1
            return Item(f"<msqrt><mrow>{inside}</mrow></msqrt>", True)
        return Item(_identifier(text), True)

    def _between_sizes(self, following: Token) -> bool:
        """Whether this `x` is the sign of a size: `K x K`, `3 x 3`, `H x W`."""
        before = self.tokens[self.at - 2] if self.at > 1 else Token("", "", False)
        names = (before.text, following.text)
        if before.kind == "close":
            return following.kind == "name" and len(following.text) > 1
        return names[0] == names[1] or all(n in ("H", "W", "N", "T") for n in names)

    def _group(self, token: Token) -> Item:
        closing = {"(": ")", "[": "]", "{": "}"}[token.text]
        inside = self.items(closing)
        closed = self.at < len(self.tokens)
        self.at += closed
        end = closing if closed else ""
        if any(not i.math and re.search(r"[A-Za-z`<]{2}", i.markup) for i in inside):
            return Item(f"{html.escape(token.text)}{_joined(inside)}{end}", False, prose=True)
        content = _joined_math(inside)
        fence = '<mo stretchy="false">{}</mo>'
        whole = f"<mrow>{fence.format(token.text)}{content}{fence.format(end)}</mrow>"
        plain = token.text == "(" and "<mo>,</mo>" not in content
        return Item(whole, True, group=content if plain else "")

    def _scripted(self, item: Item, token: Token) -> Item:
        """The item with the subscript in brackets and the powers that follow it."""
        following = self.tokens[self.at] if self.at < len(self.tokens) else Token("", "", True)
        if not item.math:
            if token.kind == "code" and following.kind == "power" and not following.spaced:
                self.at += 1
                return Item(f"{item.markup}<sup>{following.text[1:]}</sup>", False)
            return item
        markup, group = item.markup, item.group
        while self.at < len(self.tokens) and not self.tokens[self.at].spaced:
            following = self.tokens[self.at]
            if following.kind == "under" and following.text != "_":
                self.at += 1
                markup = f"<msub>{markup}<mi>{following.text[1:]}</mi></msub>"
            elif following.kind == "under":
                self.at += 2
                inside = self.items({"(": ")", "{": "}"}[self.tokens[self.at - 1].text])
                self.at += 1
                tag = "munder" if markup == _identifier("sum") else "msub"
                markup = f"<{tag}>{markup}<mrow>{_joined_math(inside)}</mrow></{tag}>"
            elif following.kind == "power":
                self.at += 1
                power = following.text[1:]
                if not power:
                    opening = self.tokens[self.at]
                    self.at += 1
                    above = self._operand(opening, [])
                    raised = above.group or above.markup
                else:
                    raised = _power(power)
                markup = f"<msup>{markup}<mrow>{raised}</mrow></msup>"
            elif following.kind == "open" and following.text == "(" and token.kind == "name":
                self.at += 1
                argument = self._group(following)
                if not argument.math:
                    return Item(_joined([Item(markup, True), argument]), False, prose=True)
                markup += argument.markup
                markup = f"<mrow>{markup}</mrow>"
            elif following.text == "[" and token.kind == "name":
                self.at += 1
                markup += self._group(following).markup
            else:
                break
            group = ""
        return Item(markup, True, item.breaks, group=group)


def _follows_math(before: Sequence[Item]) -> bool:
    return bool(before) and before[-1].math


def _power(text: str) -> str:
    sign = "<mo>\N{MINUS SIGN}</mo>" if text.startswith("-") else ""
    body = text.lstrip("-")
    return sign + (f"<mn>{body}</mn>" if body[0].isdigit() else f"<mi>{body}</mi>")


def _joined_math(items: Sequence[Item]) -> str:
    """All items inside one MathML element; text becomes `<mtext>` or an operator."""

    def markup(item: Item) -> str:
        if item.math:
            return item.markup
        text = item.markup
        if text.strip() in (",", ";", ":", "."):
            return f"<mo>{text.strip()}</mo>"
        return f"<mtext>{text}</mtext>" if text.strip() else ""

    return "".join(map(markup, items))


def _identifier(text: str) -> str:
    """`W1`, `mean_HW` and `a_ht` with subscripts, Greek letters by name, all else upright."""
    if text == "sum":
        return "<mo>∑</mo>"
    if re.fullmatch(r"W[a-z]{1,4}|b[hw]", text) and text not in WORDS:
        text = f"{text[0]}_{text[1:]}"
    prime = "<mo>′</mo>" if text.endswith("'") else ""
    base, *rest = text.rstrip("'").split("_")
    under = ",".join(rest)
    digits = re.fullmatch(r"([A-Za-z])(\d+)", base)
    if digits and not rest:
        base, under = digits[1], digits[2]
    if rest and (len(under) > 4 or (len(base) > 1 and len(under) > 3)):
        return f"<mtext>{html.escape(text)}</mtext>"
    if base == "sum":
        return f"<munder><mo>∑</mo><mi>{under}</mi></munder>"
    letter = GREEK.get(base, base)
    style = "" if len(letter) == 1 else ' mathvariant="normal"'
    shown = f"<mi{style}>{letter}</mi>"
    if under:
        kind = "mn" if under.isdigit() else "mi"
        shown = f"<msub>{shown}<{kind}>{GREEK.get(under, under)}</{kind}></msub>"
    return f"<msup>{shown}{prime}</msup>" if prime else shown


def _tokens(text: str) -> Iterator[Token]:
    spaced = False
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind == "space":
            spaced = True
            continue
        yield Token(kind, match[0], spaced)
        spaced = False
