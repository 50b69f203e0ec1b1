"""Questions in, answers out: what was asked of generation, carried out with any task that can write.

Prompts of several lengths go through the model together, and what each gets is what it would get alone.

Letters: B rows, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_tfm.errors import UserError
from lit_tfm.generation.beams import Beams, beam_search
from lit_tfm.generation.decode import decode
from lit_tfm.generation.request import Request
from lit_tfm.generation.rules import RepetitionPenalty, Rule
from lit_tfm.generation.sampling import Sampling
from lit_tfm.generation.text import Answer

ROWS = 64  # of one batch


class Writer:
    """A task (its contract: tasks/reader.py) and a request, ready to write."""

    def __init__(self, task: Any, request: Request) -> None:
        tokenizer = task.facts.tokenizer
        self.task, self.request = task, request
        self.stop_id = tokenizer.sep_id
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.sep_id
        self.decode = tokenizer.decode
        self.positions: int = task.model.config.max_length
        penalty = request.repetition_penalty
        self.rules: tuple[Rule, ...] = () if penalty == 1 else (RepetitionPenalty(penalty),)

    @torch.inference_mode()
    def write(
        self, questions: list[Any], out: Callable[[str], None] | None = None, turn: int = 0
    ) -> list[list[Answer]]:
        """`num_samples` answers to each question, the best first where a score ranks them.

        `out` gets the text of a single answer as it is written. `turn`: another one, other draws.
        """
        answers: list[list[Answer]] = [[] for _ in questions]
        for group in self._groups(questions):
            asked = [questions[i] for i in group]
            for i, some in zip(group, self._together(asked, out, turn), strict=True):
                answers[i] = some
        for question, some in zip(questions, answers, strict=True):
            for answer in some:
                if question.blanks:
                    answer.text, answer.fills = self.task.answer(question, answer.ids)
        return answers

    def _groups(self, questions: list[Any]) -> Iterator[list[int]]:
        """Which go through the model together: all, as far as padding takes no positions from the longer ones."""
        kinds: dict[tuple, list[int]] = {}
        longest = max((len(q.ids) for q in questions if q.goes_on), default=0)
        for i, question in enumerate(questions):
            new = self.request.new_tokens(question.blanks)
            crowded = question.goes_on and longest + new - 1 > self.positions
            kinds.setdefault((new, len(question.ids) if crowded else 0), []).append(i)
        at_once = max(1, ROWS // max(self.request.num_samples, self.request.beams))
        for indices in kinds.values():
            yield from (indices[i : i + at_once] for i in range(0, len(indices), at_once))

    def _together(self, questions: list[Any], out: Callable[[str], None] | None, turn: int) -> list[list[Answer]]:
        new = self.request.new_tokens(questions[0].blanks)
        if (need := max(1 + 2 * question.blanks for question in questions)) > new:
            raise UserError(f"--max-new-tokens {new}: {(need - 1) // 2} blanks need at least {need}")
        if self.request.beams > 1:
            return self._searched(questions, new, out)
        return self._drawn(questions, new, out, turn)

    def _answer(self, question: Any, out: Callable[[str], None] | None) -> Answer:
        before = question.ids if question.goes_on else ()
        return Answer(self.decode, before, self.request.stops, self.stop_id, None if question.blanks else out)

    # ---- one text after the other ------------------------------------------------------------------------------

    def _drawn(self, questions: list[Any], new: int, out: Callable | None, turn: int) -> list[list[Answer]]:
        samples = self.request.num_samples
        sampling = Sampling(**self.request.sampling(free=questions[0].goes_on))
        answers = [[self._answer(question, out) for _ in range(samples)] for question in questions]
        flat = [answer for some in answers for answer in some]
        draws = np.tile(np.arange(samples), len(questions)) + turn * samples
        opening = self.task.open(questions, new)
        written = 0
        while True:
            limit = min(new - written, self.positions - opening.tokens.shape[1] + 1)
            decode(
                opening.read,
                opening.tokens,
                limit,
                sampling,
                self.stop_id,
                self.pad_id,
                present=opening.present,
                rules=(*self.rules, *opening.rules),
                watch=self._watch(flat),
                samples=samples if not written else 1,
                rows=draws,
                first=written,
            )
            written += limit
            if written == new or not self.request.slide or not questions[0].goes_on or all(a.ended for a in flat):
                break
            flat, draws, opening = self._slide(questions, answers, new, turn)
        for answer in flat:
            answer.close("tokens" if written == new else "positions")
        return answers

    def _watch(self, answers: list[Answer]) -> Callable[[Tensor, Tensor], Tensor]:
        def watch(tokens: Tensor, logits: Tensor) -> Tensor:
            likely: list = [None] * len(answers)
            if self.request.scores:
                likely = logits.log_softmax(-1).gather(1, tokens[:, None]).flatten().tolist()
            for answer, token, value in zip(answers, tokens.tolist(), likely, strict=True):
                answer.push(token, value)
            return torch.tensor([bool(answer.ended) for answer in answers], device=tokens.device)

        return watch

    def _slide(self, questions: list[Any], answers: list[list[Answer]], new: int, turn: int) -> tuple:
        """The positions are full: those that go on are read anew from the last half of what the model sees."""
        going = [
            (question, answer, number)
            for question, some in zip(questions, answers, strict=True)
            for number, answer in enumerate(some)
            if not answer.ended
        ]
        keep = max(1, self.positions // 2)
        tails = [type(q)(q.text, (q.ids + answer.ids)[-keep:], goes_on=True) for q, answer, _ in going]
        draws = np.array([number for _, _, number in going]) + turn * self.request.num_samples
        return [answer for _, answer, _ in going], draws, self.task.open(tails, new)

    # ---- the likeliest texts -----------------------------------------------------------------------------------

    def _searched(self, questions: list[Any], new: int, out: Callable | None) -> list[list[Answer]]:
        request = self.request
        penalty = 1.0 if request.length_penalty is None else request.length_penalty
        opening = self.task.open(questions, new)
        limit = min(new, self.positions - opening.tokens.shape[1] + 1)
        found = beam_search(
            opening.read,
            opening.tokens,
            limit,
            Beams(request.beams, penalty, request.early_stopping),
            self.stop_id,
            keep=request.num_samples,
            present=opening.present,
            rules=(*self.rules, *opening.rules),
            ended=self._stops_at if request.stops else None,
        )
        answers = []
        for question, texts in zip(questions, found, strict=True):
            some = [self._answer(question, None) for _ in texts]
            for answer, text in zip(some, texts, strict=True):
                likely = text.likely.tolist() if request.scores else [None] * len(text.tokens)
                for token, value in zip(text.tokens.tolist(), likely, strict=True):
                    answer.push(token, value)
                answer.close("tokens" if limit == new else "positions")
                answer.score = text.score
            answers.append(some)
        return answers

    def _stops_at(self, tokens: list[int], prompt: int) -> bool:
        """Whether the last token completes a stop string. Four byte tokens may be one character."""
        longest = max(len(stop) for stop in self.request.stops)
        text = self.decode(tokens[-(4 * longest + 16) :])
        return any(stop in text for stop in self.request.stops)
