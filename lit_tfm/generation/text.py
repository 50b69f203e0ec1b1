"""From ids to text while it is written: whole characters only, up to a stop string, without effects on a terminal.

A token is no unit of text: it may be half a character (byte-level vocabularies), and what it looks like may depend on
the one before it (`##ing`, `▁the`). A stop string may begin in one token and end in the next.
"""

import unicodedata
from collections.abc import Callable, Sequence

UNREADABLE = "\ufffd"  # what a decoder puts for bytes that are no character, or none yet
WINDOW = 64  # ids decoded at a time, so that a long text costs no more a token than a short one
BEFORE = 16  # ids of the past that stay in the window


class TextStream:
    """Ids in, one by one; the text that has become certain out. Joined, it is the text that `decode` gives at once.

    `before`: the prompt's ids; the first token may need a blank after them.
    """

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(before)[-BEFORE:]
        self._given = len(decode(self._ids)) if self._ids else 0  # characters of the window's text given out

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        # Up to three bytes may wait for the fourth of their character.
        certain = len(text)
        while certain > max(self._given, len(text) - 3) and text[certain - 1] == UNREADABLE:
            certain -= 1
        new, self._given = text[self._given : certain], max(self._given, certain)
        if certain == len(text) and len(self._ids) >= WINDOW:
            self._ids = self._ids[-BEFORE:]
            self._given = len(self._decode(self._ids))
        return new

    def flush(self) -> str:
        """What was still waiting for its other half, which does not come any more."""
        text = self._decode(self._ids) if self._ids else ""
        new, self._given = text[self._given :], len(text)
        return new


class StopStrings:
    """Text in, piece by piece; text out up to the first of `strings`, held back where one may be beginning."""

    def __init__(self, strings: Sequence[str] = ()) -> None:
        self._strings = [string for string in strings if string]
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        if self.found is not None:
            return ""
        self._held += text
        # The one that is complete first, whatever the pieces: a longer one may have begun before it.
        places = [(self._held.find(string), string) for string in self._strings]
        ends = [(place + len(string), place, string) for place, string in places if place >= 0]
        if ends:
            _, at, self.found = min(ends)
            out, self._held = self._held[:at], ""
            return out
        keep = max((_overlap(self._held, string) for string in self._strings), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def flush(self) -> str:
        out, self._held = self._held, ""
        return out


def _overlap(text: str, string: str) -> int:
    """The longest end of `text` that `string` begins with, short of the whole string."""
    return next((n for n in range(min(len(text), len(string) - 1), 0, -1) if text.endswith(string[:n])), 0)


class Answer:
    """What one row has written: `ids`, `text`, `likely` (log-probabilities, where asked) and how it `ended`.

    ended: "end" by the model's end token, "stop" by a stop string, "tokens" after as many as asked, "positions" where
    the model has no more.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        before: Sequence[int] = (),
        stops: Sequence[str] = (),
        stop_id: int | None = None,
        out: Callable[[str], None] | None = None,
    ) -> None:
        self.ids: list[int] = []
        self.likely: list[float] = []
        self.text, self.ended = "", ""
        self.score: float | None = None  # of a beam search
        self.fills: list[str] | None = None  # of a text with blanks; then `text` is the filled text
        self._stream, self._stops = TextStream(decode, before), StopStrings(stops)
        self._stop_id, self._out = stop_id, out

    def push(self, token: int, likely: float | None = None) -> None:
        """One more token."""
        if self.ended:
            return
        self.ids.append(token)
        if likely is not None:
            self.likely.append(likely)
        if token == self._stop_id:
            self.close("end")
            return
        self._add(self._stops.push(self._stream.push(token)))
        if self._stops.found is not None:
            self.ended = "stop"

    def close(self, ended: str) -> None:
        """No more tokens come."""
        if self.ended:
            return
        self._add(self._stops.push(self._stream.flush()))
        if self._stops.found is None:
            self._add(self._stops.flush())
        self.ended = ended if self._stops.found is None else "stop"

    def _add(self, text: str) -> None:
        self.text += text
        if text and self._out is not None:
            self._out(text)


# Controls, what turns the direction of the text around it, what is no character.
UNSAFE = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
HARMLESS = "\n\t\u200c\u200d"  # the last two are parts of words in Persian or Hindi, and of emoji


def harmless(text: str) -> str:
    """Text as a terminal may have it: lines and tabs as they are, no carriage returns, other controls as `\\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_harmless, text))


def _harmless(symbol: str) -> str:
    if symbol == "\r":
        return ""
    if symbol in HARMLESS or unicodedata.category(symbol) not in UNSAFE:
        return symbol
    return ascii(symbol)[1:-1]
