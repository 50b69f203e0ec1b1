"""A conversation in a terminal, turn by turn, with as much of its past as the model has positions for.

A model of plain text knows no roles: what was said is one text that it goes on with. `you` and `reply` are written
before the person's and the model's turns (`ROMEO: `, `JULIET: `), and a reply ends where the next `you` would begin.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TextIO

from lit_tfm.errors import UserError
from lit_tfm.generation.screen import Screen
from lit_tfm.generation.text import Answer
from lit_tfm.generation.write import Writer

HELP = "/reset forgets what was said, /quit (or Ctrl-D) ends, Ctrl-C stops a reply"
COMMAND = re.compile(r"/[a-z]+\s*$")


class Chat:
    """What was said so far, and what comes next."""

    def __init__(self, writer: Writer, screen: Screen, you: str = "", reply: str = "") -> None:
        stops = [*writer.request.stops, *([you.rstrip()] if you.strip() else [])]
        writer.request = replace(writer.request, stops=tuple(stops))
        self.writer, self.screen, self.you, self.reply = writer, screen, you, reply
        self.turns: list[str] = []  # what the person and the model said, with what stands before it
        self.number = 0

    def loop(self, lines: Iterator[str]) -> None:
        """Until the lines end or one is /quit."""
        for line in lines:
            if COMMAND.match(line):
                if not self._command(line.strip()):
                    return
                continue
            try:
                self.say(line)
            except UserError as error:
                self.screen.note(f"error: {error}")

    def _command(self, command: str) -> bool:
        if command in ("/quit", "/exit"):
            return False
        if command == "/reset":
            self.turns.clear()
            self.screen.note("forgotten")
        elif command == "/help":
            self.screen.note(HELP)
        else:
            self.screen.note(f"error: no command {command}; there is /reset, /quit and /help")
        return True

    def say(self, line: str) -> None:
        """One turn of each."""
        question, began = self._question(line), time.perf_counter()
        spoken: list[str] = []

        def out(text: str) -> None:
            spoken.append(text)
            self.screen.write(text)

        self.number += 1
        try:
            [[answer]] = self.writer.write([question], out, turn=self.number - 1)
        except KeyboardInterrupt:
            answer = None
        if answer is not None and answer.fills is not None:
            self.screen.answer(question, answer)
        else:
            self.screen.write("\n")
        if answer is None:
            self.screen.note("stopped")
        else:
            self._told(answer, time.perf_counter() - began)
        if question.goes_on:
            self.turns[-1] += "".join(spoken)
            if not self.turns[-1].endswith("\n") and not self.you.startswith("\n"):
                self.turns[-1] += "\n"

    def _told(self, answer: Answer, seconds: float) -> None:
        if self.writer.request.scores:
            self.screen.scores(answer, self.writer.task.facts.tokenizer.token)
        ended = f"; {self.writer.positions} positions are full" if answer.ended == "positions" else ""
        rate = len(answer.ids) / max(seconds, 1e-9)
        self.screen.note(f"{len(answer.ids)} tokens, {rate:,.0f} tokens/s{ended}")

    def _question(self, line: str) -> Any:
        """What the model reads: the line after all that was said, of which the oldest turns give way.

        Raises UserError where the line alone is too long; then it is not said.
        """
        if not self.writer.task.converses:  # an encoder-decoder answers each text for itself
            return self.writer.task.question(line)
        turn = f"{self.you}{line}{self.reply}"
        past, forgotten = list(self.turns), 0
        room = self.writer.positions - min(self.writer.request.new_tokens(), self.writer.positions // 2)
        while past and self._length("".join(past) + turn) > room:
            past.pop(0)
            forgotten += 1
        question = self.writer.task.question("".join(past) + turn)
        if forgotten:
            these = "turn is" if forgotten == 1 else f"{forgotten} turns are"
            self.screen.note(f"the oldest {these} forgotten: the model has {self.writer.positions} positions")
        self.turns = [*past, turn]
        return question

    def _length(self, text: str) -> int:
        return len(self.writer.task.facts.tokenizer.encode(text, special=True))


def typed_lines(source: TextIO, ask: Callable[[str], str] | None, mark: str) -> Iterator[str]:
    """Lines of a pipe, or of a person at a terminal, until they end."""
    while True:
        try:
            line = source.readline() if ask is None else ask(mark) + "\n"
        except EOFError:
            return
        if not line:
            return
        yield line.removesuffix("\n").removesuffix("\r")
