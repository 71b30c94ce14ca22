"""A secret's name in a text, and what behind it is its value."""

import re
from dataclasses import dataclass

from train.redaction import grammar
from train.redaction.literals import (
    LONGEST_VALUE,
    NEXT_LITERAL,
    OPENING,
    Span,
    end_of_bracket,
    end_of_quoted,
    in_comment,
    indented_lines,
    is_key,
    is_redacted,
    padded,
    secret_literals,
)
from train.redaction.names import Grade
from train.redaction.shapes import is_harmless, looks_secret

# Digits of a number that counts as a password, or as a token.
SHORTEST_NUMBER = 4
SHORTEST_TOKEN_NUMBER = 6
LONGEST_PREFIX = 80
"""Characters before a name that are looked at."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A name, and what may be its value."""

    text: str
    start: int
    """Of the name."""
    end: int
    grade: Grade
    code: bool
    """Whether the text is Python, where what has no quotes is an expression."""

    def spans(self) -> list[Span]:
        """Where the values of the name stand, in order."""
        spans = self._behind()
        if not self.code or not self._is_sure:
            return spans
        # user, password = "me", "x"; set_password("me", "x"); "x" if mine else "y"
        line_end = self._line_end(self.end)
        line = self.text[self._line_start : line_end][:LONGEST_VALUE]
        for literal in secret_literals(line, self._line_start):
            if all(literal.end <= span.start or span.end <= literal.start for span in spans):
                spans = [*spans, literal]
        return sorted(spans, key=lambda span: span.start)

    @property
    def _is_sure(self) -> bool:
        """Whether the name alone makes a secret of its value, unless that is a short number."""
        return self.grade is not Grade.MAYBE

    @property
    def _line_start(self) -> int:
        return self.text.rfind("\n", 0, self.start) + 1

    def _line_end(self, position: int) -> int:
        end = self.text.find("\n", position)
        return end if end >= 0 else len(self.text)

    def _behind(self) -> list[Span]:
        """The first that finds a value: behind a sign or a space, beside the name, below it."""
        spans: list[Span] = []
        joint = grammar.JOINT.match(self.text, self.end)
        if joint is not None:
            spans = self._after_sign(joint)
        else:
            spaced = grammar.SPACED.match(self.text, self.end)
            if spaced is not None:
                spans = self._after_space(spaced)
        if spans:
            return spans
        later = grammar.LATER.match(self.text, self.end)
        if later is not None:
            spans = self._quoted(later.end(), sure=True) or self._bare(later.end())
        return spans or self._below()

    def _below(self) -> list[Span]:
        """On the line below the name there is nothing else, and it looks like a secret."""
        if self.code or not self._is_sure:
            return []
        below = grammar.BELOW.match(self.text, self.end)
        if below is None:
            return []
        value = below["value"]
        if is_redacted(value) or not looks_secret(value) or "://" in value:
            return []
        is_alone = not self.text[self._line_start : self.start].strip("+- |\t\"'`")
        is_heading = is_alone and (self.grade is Grade.SURE or below["rule"])
        if not (below["sign"] or below["later"] or is_heading):
            return []
        return [Span(below.start("value"), below.end("value"))]

    # After a sign

    def _after_sign(self, joint: re.Match[str]) -> list[Span]:
        sign = joint["sign"]
        value_start = joint.end()
        if sign == ",":
            return self._after_comma(joint)
        if sign == ">":
            is_tag = grammar.TAG.search(self.text, max(0, self.start - 40), self.start)
            return self._until(value_start, "<") if is_tag else []
        is_in_url = sign.startswith(("%", "&")) or "%2" in joint["close"] or "&" in joint["close"]
        if is_in_url:
            return self._until(value_start, "%&\"' \n<>")
        quoted = self._quoted(value_start, sure=True)
        if quoted:
            return quoted
        code = self.code and not in_comment(self.text, self.start)
        if self.text[value_start : value_start + 1] in ("(", "[", "{"):
            return self._bracket(value_start, code)
        starts_new_line = grammar.NEW_LINE.match(self.text, value_start) is not None
        if code:
            return (
                self._next_literal(value_start)
                if starts_new_line
                else self._expression(value_start)
            )
        if sign == ":" and (starts_new_line or grammar.BLOCK.match(self.text, value_start)):
            return self._indented(value_start) or self._below()
        return self._bare(value_start, sign, joint["close"])

    def _after_comma(self, joint: re.Match[str]) -> list[Span]:
        """environ.setdefault("TOKEN", "x"), ["--token", "x"]; not a list of names."""
        # The default of ${oc.env:TOKEN,x}.
        if self.text.endswith("oc.env:", 0, self.start):
            return self._until(joint.end(), "}")
        if not set(joint["close"]) & set("\"'`"):
            return []
        before = self.text[max(0, self.start - 12) : self.start]
        sure = self._is_option or grammar.CALL.search(before) is not None
        return self._quoted(joint.end(), sure)

    def _after_space(self, spaced: re.Match[str]) -> list[Span]:
        """--token x, ENV TOKEN x, the password is x."""
        before = self.text[max(0, self._line_start, self.start - LONGEST_PREFIX) : self.start]
        is_option = self._is_option and not spaced["close"]
        sure = is_option or grammar.SETTER.search(before) is not None
        start = spaced.end()
        # The next option: --token --verbose.
        if sure and self.text[start] == "-":
            return []
        quoted = self._quoted(start, sure)
        if quoted or OPENING.match(self.text, start):
            return quoted
        word = grammar.WORD.match(self.text, start)
        if word is None:
            return []
        value = word[0].rstrip(".,;)\"'`")
        if is_harmless(value) or is_redacted(value):
            return []
        if not sure and not looks_secret(padded(value, spaced["be"])):
            return []
        return [Span(start, start + len(value))]

    # Kinds of values

    def _quoted(self, start: int, sure: bool) -> list[Span]:
        """A text in quotes, and those that Python joins to it."""
        spans: list[Span] = []
        opening = OPENING.match(self.text, start)
        while opening is not None:
            close = end_of_quoted(self.text, opening)
            value = self.text[opening.end() : close]
            if not spans and not self._is_secret(value, sure):
                return []
            spans.append(Span(opening.end(), close))
            following = NEXT_LITERAL.match(self.text, close + len(opening["quote"]))
            opening = OPENING.match(self.text, following.end()) if following else None
            if opening is not None and is_key(self.text, opening):
                break
        return spans

    def _bracket(self, start: int, code: bool) -> list[Span]:
        end = end_of_bracket(self.text, start)
        if code:
            return self._literals(start, end)
        value = self.text[start + 1 : end - 1]
        is_empty = not value.strip() or is_redacted(self.text[start:end])
        if is_empty or not self._is_secret(value, self._is_sure):
            return []
        return [Span(start, end)]

    def _next_literal(self, start: int) -> list[Span]:
        """The text in quotes that an expression on the next line begins with."""
        following = NEXT_LITERAL.match(self.text, start)
        return self._quoted(following.end(), sure=True) if following else []

    def _literals(self, start: int, end: int) -> list[Span]:
        """All texts in quotes of a bracket."""
        spans: list[Span] = []
        quote = grammar.QUOTE.search(self.text, start, end)
        while quote is not None:
            opening = OPENING.match(self.text, quote.start())
            assert opening is not None
            close = min(end_of_quoted(self.text, opening), end)
            if self._is_secret(self.text[opening.end() : close], sure=True):
                spans.append(Span(opening.end(), close))
            quote = grammar.QUOTE.search(self.text, close + len(opening["quote"]), end)
        return spans

    def _expression(self, start: int) -> list[Span]:
        """In code: a number, or what looks like a secret in it."""
        line = self.text[start : self._line_end(start)][:LONGEST_VALUE]
        wrapped = grammar.WRAPPED.match(line)
        if wrapped is not None:
            return self._quoted(start + wrapped.end(), sure=True)
        bare = grammar.BARE.match(line)
        if bare is not None and self._is_secret_word(bare[0]):
            return [Span(start, start + bare.end())]
        return secret_literals(line, start)

    def _is_secret_word(self, word: str) -> bool:
        """Of an expression in code: no call, index or attribute, and no text in quotes."""
        if grammar.EXPRESSION.search(word) or word[0] in "\"'":
            return False
        is_password_number = word.isdecimal() and self.grade is Grade.SURE
        return self._is_secret(word, is_password_number) and (
            is_password_number or looks_secret(word)
        )

    def _indented(self, start: int) -> list[Span]:
        """YAML: a folded text, a list or a mapping below the name."""
        lines = indented_lines(self.text, self.start, start)
        return [
            line
            for line in lines
            if self._is_secret(self.text[line.start : line.end], self._is_sure)
        ]

    def _bare(self, start: int, sign: str = "=", close: str = "") -> list[Span]:
        """Without quotes: to the next space, or to the end of a line that begins with the name."""
        line_end = min(self._line_end(start), start + LONGEST_VALUE)
        rest = self.text[start:line_end]
        if is_redacted(rest):
            return []
        is_first = self._is_first_of_line()
        quote = self.text[self.start - 1 : self.start]
        if quote in ("'", '"') and not close.strip() and quote in rest:
            # 'Cookie: a=b; c=d'
            value = rest[: rest.index(quote)]
        elif self._takes_line(is_first, rest, sign, close):
            value = re.split(r"[ \t]#", rest)[0].rstrip()
        else:
            value = re.split(r"\s", rest)[0].rstrip(")]},;")
            if quote in ("'", '"', "`"):
                value = value.rstrip("\"'`")
        # unexpected token: }
        is_prose = sign == ":" and not is_first and self.grade is Grade.NUMBERED and len(value) < 8
        is_comparison = sign in ("==", "!=")
        if is_prose or not self._is_secret(value, self._is_sure and not is_comparison):
            return []
        return [Span(start, start + len(value))]

    def _is_first_of_line(self) -> bool:
        if self._line_start < self.start - LONGEST_PREFIX or self._is_option:
            return False
        before = self.text[self._line_start : self.start]
        return grammar.LINE_START.fullmatch(before) is not None

    def _takes_line(self, is_first: bool, rest: str, sign: str, close: str) -> bool:
        """Whether the value goes to the end of the line, spaces included."""
        is_only_pair = not close.strip() if sign == ":" else "=" not in rest
        if not is_only_pair:
            return False
        name = grammar.WHOLE_LINE.fullmatch(self.text, self.start, self.end)
        return is_first or name is not None

    def _until(self, start: int, stops: str) -> list[Span]:
        end = start
        limit = min(len(self.text), start + LONGEST_VALUE)
        while end < limit and self.text[end] not in stops:
            end += 1
        if self._is_secret(self.text[start:end], self._is_sure):
            return [Span(start, end)]
        return []

    # Judgement

    def _is_secret(self, value: str, sure: bool) -> bool:
        """`sure`: a value of any look is one, as long as the name says so."""
        stripped = value.strip(" \t\n\\\"'")
        if is_harmless(stripped) or is_redacted(stripped):
            return False
        if re.fullmatch(r"[\d_,.]+", stripped):
            digits = sum(letter.isdigit() for letter in stripped)
            shortest = SHORTEST_NUMBER if self.grade is Grade.SURE else SHORTEST_TOKEN_NUMBER
            return digits >= shortest and self._is_sure
        return looks_secret(stripped) or (sure and self._is_sure)

    @property
    def _is_option(self) -> bool:
        """`--token`; at the begin of a line, one dash is the mark of a patch."""
        if self.text.startswith("--", self.start):
            return True
        before = self.text[self.start - 1 : self.start]
        return self.text[self.start] == "-" and before not in ("", "\n")
