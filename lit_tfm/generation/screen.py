"""What a person reads of generation: texts on stdout, everything about them on stderr, 80 columns."""

import json
import shutil
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size

from lit_tfm.generation.text import Answer, harmless

DIM, ASKED, FILLED, PLAIN = "\x1b[2m", "\x1b[36m", "\x1b[1;4m", "\x1b[0m"
ENDED = {
    "positions": "stopped at the model's {positions} positions (--slide goes on)",
    "tokens": "",
    "end": "ended by the model",
    "stop": "ended by a stop string",
}


class Screen:
    """Two streams, with colours where they are a terminal that wants them; no control character of a text gets out."""

    def __init__(self, out: TextIO, notes: TextIO, colour: bool) -> None:
        self.out, self.notes = out, notes
        self._colour = colour and out.isatty()
        self._colour_notes = colour and notes.isatty()
        self._column = 0
        self.width = min(80, shutil.get_terminal_size((80, 24)).columns)

    def write(self, text: str, style: str = "") -> None:
        """Text of a prompt or a model, at once."""
        shown = harmless(text)
        self.out.write(f"{style}{shown}{PLAIN}" if style and self._colour and shown else shown)
        self.out.flush()

    def note(self, text: str) -> None:
        """A line about the texts."""
        shown = harmless(text)
        self.notes.write(f"{DIM}{shown}{PLAIN}\n" if self._colour_notes else f"{shown}\n")
        self.notes.flush()

    def header(self, text: str) -> None:
        self.write(f"── {text} {'─' * max(0, self.width - cell_len(text) - 4)}\n", DIM)

    # ---- answers -----------------------------------------------------------------------------------------------

    def question(self, question: Any) -> None:
        """What was asked, in front of what goes on with it."""
        if question.goes_on:
            self.write(question.text, ASKED)

    def answer(self, question: Any, answer: Answer) -> None:
        """A whole answer behind its question."""
        self.question(question)
        if answer.fills is None:
            self.write(answer.text)
        else:
            for i, piece in enumerate(question.pieces):
                self.write(piece)
                self.write(answer.fills[i] if i < len(answer.fills) else "", FILLED)
        self.write("\n")

    def scores(self, answer: Answer, token: Any) -> None:
        """Each token with its log-probability, as many in a line as fit, and their sum."""
        cells = [f"{_cell(token(i), 11)}{value:8.3f}" for i, value in zip(answer.ids, answer.likely, strict=True)]
        many = max(1, (self.width + 1) // 20)
        for start in range(0, len(cells), many):
            self.write(" ".join(cells[start : start + many]) + "\n", DIM)
        total, n = sum(answer.likely), len(answer.likely)
        score = "" if answer.score is None else f", score {answer.score:.4f}"
        mean = f", {total / n:.4f} a token" if n else ""
        self.write(f"log-probability {total:.4f} of {n} tokens{mean}{score}\n", DIM)

    def pace(self, answers: list[Answer], seconds: float, described: str, positions: int) -> None:
        """Tokens a second, how they were chosen, and what ended the texts where it is not their number."""
        tokens = sum(len(answer.ids) for answer in answers)
        many = f", {len(answers)} texts" if len(answers) > 1 else ""
        told = f"{tokens} tokens in {seconds:.2f} s ({tokens / max(seconds, 1e-9):,.0f} tokens/s){many}; {described}"
        ends = [answer.ended for answer in answers]
        self.note(told)
        if len(answers) == 1 and ENDED[ends[0]]:
            self.note(ENDED[ends[0]].format(positions=positions))
        elif "positions" in ends:
            self.note(f"{ends.count('positions')} {ENDED['positions'].format(positions=positions)}")


def _cell(text: str, width: int) -> str:
    text = harmless(text.replace("\n", "↵").replace("\t", "→").replace(" ", "␣"))
    return set_cell_size(text if cell_len(text) <= width else f"{set_cell_size(text, width - 1)}…", width)


def as_json(question: Any, answer: Answer, number: int, token: Any) -> str:
    """One line: the exact text, control characters and all, escaped."""
    entry: dict[str, Any] = {
        "prompt": question.text,
        "number": number,
        "text": answer.text,
        "tokens": len(answer.ids),
        "ended": answer.ended,
    }
    if answer.fills is not None:
        entry["fills"] = answer.fills
    if answer.score is not None:
        entry["score"] = answer.score
    if answer.likely:
        entry["log_probability"] = sum(answer.likely)
        entry["token_scores"] = [
            {"id": i, "token": token(i), "log_probability": value}
            for i, value in zip(answer.ids, answer.likely, strict=True)
        ]
    return json.dumps(entry, ensure_ascii=False)
