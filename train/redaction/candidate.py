"""A secret's name in a text, and what behind it is its value."""

import re
from dataclasses import dataclass

from train.redaction import grammar
from train.redaction.names import Grade
from train.redaction.shapes import is_harmless, looks_secret
from train.redaction.written import (
    LONGEST_VALUE,
    NEXT_LITERAL,
    OPENING,
    Span,
    end_of_bracket,
    end_of_quoted,
    in_comment,
    indented_lines,
    is_hidden,
    is_key,
    made_up,
    padded,
)

SHORTEST_NUMBER, SHORTEST_TOKEN_NUMBER = 4, 6
"""Digits of a number that counts as a password, or as a token."""


@dataclass(frozen=True)
class Candidate:
    """A name, and what may be its value."""

    text: str
    start: int  # of the name
    end: int
    rank: Grade
    code: bool

    def spans(self) -> list[Span]:
        found = self._behind()
        if not self.code or self.rank is Grade.MAYBE:
            return found
        # user, password = "me", "x"; set_password("me", "x"); "x" if mine else "y"
        begin = self.text.rfind("\n", 0, self.start) + 1
        end = self.text.find("\n", self.end)
        line = self.text[begin : end if end >= 0 else len(self.text)][:LONGEST_VALUE]
        for other in made_up(line, begin):
            if all(other.end <= span.start or span.end <= other.start for span in found):
                found = [*found, other]
        return sorted(found, key=lambda span: span.start)

    def _behind(self) -> list[Span]:
        joint = grammar.JOINT.match(self.text, self.end)
        if joint is not None:
            found = self._after_sign(joint)
            if found:
                return found
        else:
            spaced = grammar.SPACED.match(self.text, self.end)
            if spaced is not None:
                found = self._after_space(spaced)
                if found:
                    return found
        later = grammar.LATER.match(self.text, self.end)
        found = self._quoted(later.end(), sure=True) or self._bare(later.end()) if later else []
        return found or self._below()

    def _below(self) -> list[Span]:
        """On the line below the name there is nothing else, and it looks like a secret."""
        below = (
            None
            if self.code or self.rank is Grade.MAYBE
            else grammar.BELOW.match(self.text, self.end)
        )
        if (
            below is None
            or is_hidden(below["value"])
            or not looks_secret(below["value"])
            or "://" in below["value"]
        ):
            return []
        begin = self.text.rfind("\n", 0, self.start) + 1
        is_alone = not self.text[begin : self.start].strip("+- |\t\"'`")
        is_heading = is_alone and (self.rank is Grade.SURE or below["rule"])
        if not (below["sign"] or below["later"] or is_heading):
            return []
        return [Span(below.start("value"), below.end("value"))]

    # After a sign

    def _after_sign(self, joint: re.Match[str]) -> list[Span]:
        sign, place = joint["sign"], joint.end()
        if sign == ",":
            return self._after_comma(joint)
        if sign == ">":
            is_tag = grammar.TAG.search(self.text, max(0, self.start - 40), self.start)
            return self._until(place, "<") if is_tag else []
        if sign.startswith(("%", "&")) or "%2" in joint["close"] or "&" in joint["close"]:
            return self._until(place, "%&\"' \n<>")
        code = self.code and not in_comment(self.text, self.start)
        quoted = self._quoted(place, sure=True)
        if quoted:
            return quoted
        if self.text[place : place + 1] in ("(", "[", "{"):
            return self._bracket(place, code)
        if code:
            return (
                self._literals(place)
                if grammar.NEW_LINE.match(self.text, place)
                else self._expression(place)
            )
        if sign == ":" and (
            grammar.BLOCK.match(self.text, place) or grammar.NEW_LINE.match(self.text, place)
        ):
            return self._indented(place) or self._below()
        return self._bare(place, sign, joint["close"])

    def _after_comma(self, joint: re.Match[str]) -> list[Span]:
        """environ.setdefault("TOKEN", "x"), ["--token", "x"]; not a list of names."""
        if self.text.endswith("oc.env:", 0, self.start):
            return self._until(joint.end(), "}")  # the default of ${oc.env:TOKEN,x}
        if not set(joint["close"]) & set("\"'`"):
            return []
        before = self.text[max(0, self.start - 12) : self.start]
        sure = self._is_option() or grammar.CALL.search(before) is not None
        return self._quoted(joint.end(), sure)

    def _after_space(self, spaced: re.Match[str]) -> list[Span]:
        """--token x, ENV TOKEN x, the password is x."""
        line = self.text[
            max(0, self.text.rfind("\n", 0, self.start) + 1, self.start - 80) : self.start
        ]
        sure = (self._is_option() and not spaced["close"]) or grammar.SETTER.search(
            line
        ) is not None
        place = spaced.end()
        if sure and self.text[place] == "-":
            return []
        quoted = self._quoted(place, sure)
        if quoted or OPENING.match(self.text, place):
            return quoted
        value = grammar.WORD.match(self.text, place)
        if value is None:
            return []
        inside = value[0].rstrip(".,;)\"'`")
        if (
            is_harmless(inside)
            or is_hidden(inside)
            or not (sure or looks_secret(padded(inside, spaced["be"])))
        ):
            return []
        return [Span(place, place + len(inside))]

    # Kinds of values

    def _quoted(self, place: int, sure: bool) -> list[Span]:
        """A text in quotes, and those that Python joins to it."""
        found: list[Span] = []
        opening = OPENING.match(self.text, place)
        while opening is not None:
            close = end_of_quoted(self.text, opening)
            inside = self.text[opening.end() : close]
            if found or self._hides(inside, sure):
                found.append(Span(opening.end(), close))
            elif not found:
                return []
            following = NEXT_LITERAL.match(self.text, close + len(opening["quote"]))
            opening = OPENING.match(self.text, following.end()) if following else None
            if opening is not None and is_key(self.text, opening):
                break
        return found

    def _bracket(self, place: int, code: bool) -> list[Span]:
        end = end_of_bracket(self.text, place)
        if code:
            return self._literals(place, end)
        inside = self.text[place + 1 : end - 1]
        empty = not inside.strip() or is_hidden(self.text[place:end])
        return (
            []
            if empty or not self._hides(inside, self.rank is not Grade.MAYBE)
            else [Span(place, end)]
        )

    def _literals(self, place: int, end: int | None = None) -> list[Span]:
        """All texts in quotes of a bracket, or of an expression that begins on the next line."""
        if end is None:
            end = min(len(self.text), place + 300)
            following = NEXT_LITERAL.match(self.text, place)
            return self._quoted(following.end(), sure=True) if following else []
        found: list[Span] = []
        opening = grammar.QUOTE.search(self.text, place, end)
        while opening is not None:
            begins = OPENING.match(self.text, opening.start())
            assert begins is not None
            close = min(end_of_quoted(self.text, begins), end)
            if self._hides(self.text[begins.end() : close], sure=True):
                found.append(Span(begins.end(), close))
            opening = grammar.QUOTE.search(self.text, close + len(begins["quote"]), end)
        return found

    def _expression(self, place: int) -> list[Span]:
        """In code: a number, or what looks like a secret in it."""
        line_end = self.text.find("\n", place)
        line = self.text[place : line_end if line_end >= 0 else len(self.text)][:LONGEST_VALUE]
        wrapped = grammar.WRAPPED.match(line)
        if wrapped is not None:
            return self._quoted(place + wrapped.end(), sure=True)
        bare = grammar.BARE.match(line)
        if bare is not None and not grammar.EXPRESSION.search(bare[0]) and bare[0][0] not in "\"'":
            sure = bare[0].isdecimal() and self.rank is Grade.SURE
            if self._hides(bare[0], sure) and (sure or looks_secret(bare[0])):
                return [Span(place, place + bare.end())]
        return made_up(line, place)

    def _indented(self, place: int) -> list[Span]:
        """YAML: a folded text, a list or a mapping below the name."""
        lines = indented_lines(self.text, self.start, place)
        return [
            span
            for span in lines
            if self._hides(self.text[span.start : span.end], self.rank is not Grade.MAYBE)
        ]

    def _bare(self, place: int, sign: str = "=", close: str = "") -> list[Span]:
        """Without quotes: to the next space, and to the end of a line that begins with the name."""
        line_end = self.text.find("\n", place)
        line_end = len(self.text) if line_end < 0 else line_end
        line_end = min(line_end, place + LONGEST_VALUE)
        begin = self.text.rfind("\n", 0, self.start) + 1
        head = self.text[max(begin, self.start - 80) : self.start]
        first = (
            begin >= self.start - 80
            and grammar.LINE_START.fullmatch(head)
            and not self._is_option()
        )
        rest = self.text[place:line_end]
        if is_hidden(rest):
            return []
        alone = not close.strip() if sign == ":" else "=" not in rest
        whole = alone and (first or grammar.WHOLE_LINE.fullmatch(self.text, self.start, self.end))
        opened = self.text[self.start - 1 : self.start]
        if opened in ("'", '"') and not close.strip() and opened in rest:
            value = rest[: rest.index(opened)]  # 'Cookie: a=b; c=d'
        elif whole:
            value = re.split(r"[ \t]#", rest)[0].rstrip()
        else:
            value = re.split(r"\s", rest)[0].rstrip(")]},;")
            if opened in ("'", '"', "`"):
                value = value.rstrip("\"'`")
        # unexpected token: }
        prose = sign == ":" and not first and self.rank is Grade.NUMBERED and len(value) < 8
        if prose or not self._hides(
            value, self.rank is not Grade.MAYBE and sign not in ("==", "!=")
        ):
            return []
        return [Span(place, place + len(value))]

    def _until(self, place: int, stops: str) -> list[Span]:
        end = place
        limit = min(len(self.text), place + LONGEST_VALUE)
        while end < limit and self.text[end] not in stops:
            end += 1
        return (
            [Span(place, end)]
            if self._hides(self.text[place:end], self.rank is not Grade.MAYBE)
            else []
        )

    # Judgement

    def _hides(self, value: str, sure: bool) -> bool:
        inside = value.strip(" \t\n\\\"'")
        if is_harmless(inside) or is_hidden(inside):
            return False
        if re.fullmatch(r"[\d_,.]+", inside):
            digits = sum(letter.isdigit() for letter in inside)
            shortest = SHORTEST_NUMBER if self.rank is Grade.SURE else SHORTEST_TOKEN_NUMBER
            return digits >= shortest and self.rank is not Grade.MAYBE
        return looks_secret(inside) or (sure and self.rank is not Grade.MAYBE)

    def _is_option(self) -> bool:
        """`--token`; at the begin of a line, one dash is the mark of a patch."""
        return self.text.startswith("--", self.start) or (
            self.text[self.start] == "-"
            and self.text[self.start - 1 : self.start] not in ("", "\n")
        )
