"""What a person asks of generation, checked before anything is loaded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lit_tfm.errors import UserError

NEW_TOKENS = 128
PER_BLANK = 10  # tokens, the sentinel included
TEMPERATURE, TOP_K = 0.8, 40  # where nothing is said, of texts that go on freely


@dataclass(frozen=True)
class Request:
    """How to write. None: not said.

    Where none of temperature, top_k, top_p and min_p is said, a text that goes on freely is drawn with temperature 0.8
    from the 40 likeliest tokens, and blanks take the likeliest. Where one is said, the others are off (temperature 1).
    """

    max_new_tokens: int | None = None
    greedy: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float | None = None
    early_stopping: bool = False
    num_samples: int = 1
    stops: Sequence[str] = ()
    seed: int = 0
    scores: bool = False
    slide: bool = False

    @property
    def drawn(self) -> list[str]:
        """The options said that only drawing has."""
        return [name for name in ("temperature", "top_k", "top_p", "min_p") if getattr(self, name) is not None]

    def check(self) -> None:
        """Raises UserError, naming the option as it is typed."""
        for name in ("max_new_tokens", "num_samples", "beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{_typed(name)} {value}: at least 1 is needed")
        for name, low, high in (("temperature", 0, math.inf), ("top_p", 0, 1), ("min_p", 0, 1)):
            value = getattr(self, name)
            out = value is not None and not low <= value <= high
            if out or (value is not None and ((name == "top_p" and value == 0) or value == math.inf)):
                allowed = {"temperature": "0 (greedy) or above", "top_p": "above 0, at most 1", "min_p": "0 to 1"}[name]
                example = {"temperature": 0.8, "top_p": 0.95, "min_p": 0.05}[name]
                raise UserError(f"{_typed(name)} {value}: it can be {allowed}; type e.g. {_typed(name)} {example}")
        if self.top_k is not None and self.top_k < 0:
            raise UserError(f"--top-k {self.top_k}: it can be 0 (all tokens) or above; type e.g. --top-k 40")
        if not 0 < self.repetition_penalty < math.inf:
            raise UserError(
                f"--repetition-penalty {self.repetition_penalty}: it can be above 0, 1 is none; "
                "type e.g. --repetition-penalty 1.2"
            )
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: it can be 0 or above")
        if "" in self.stops:
            raise UserError("--stop '': an empty string stops nothing; name the text to stop at, e.g. --stop '\\n'")
        if self.greedy and self.drawn:
            raise UserError(f"--greedy takes the likeliest token, {_typed(self.drawn[0])} draws one; leave one out")
        self._check_beams()

    def _check_beams(self) -> None:
        if self.beams == 1:
            for name in ("length_penalty", "early_stopping"):
                if getattr(self, name) not in (None, False):
                    raise UserError(f"{_typed(name)} belongs to a beam search; type e.g. --beams 4 as well")
            if self.num_samples > 1 and (self.greedy or self.temperature == 0):
                raise UserError(
                    f"--num-samples {self.num_samples}: the likeliest text is the same each time; leave out --greedy, "
                    "or search several with --beams"
                )
            return
        if self.drawn:
            raise UserError(
                f"--beams {self.beams} searches the likeliest texts, {_typed(self.drawn[0])} draws them; leave one out"
            )
        if self.num_samples > self.beams:
            raise UserError(
                f"--num-samples {self.num_samples} of {self.beams} beams: a search finds as many texts as it has "
                f"beams; type --beams {self.num_samples}"
            )
        if self.length_penalty is not None and not math.isfinite(self.length_penalty):
            raise UserError(f"--length-penalty {self.length_penalty}: a number is needed, e.g. --length-penalty 1")
        if self.slide:
            raise UserError("--slide goes with texts written once, not with --beams; leave one out")

    def new_tokens(self, blanks: int = 0) -> int:
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return 1 + PER_BLANK * blanks if blanks else NEW_TOKENS

    def sampling(self, free: bool = True) -> dict[str, float]:
        """Arguments of `Sampling`. `free`: the text goes on freely, as opposed to filling blanks."""
        if self.greedy or self.beams > 1:
            return {"temperature": 0.0, "seed": self.seed}
        if not self.drawn:
            if not free and self.num_samples == 1:
                return {"temperature": 0.0, "seed": self.seed}
            return {"temperature": TEMPERATURE, "top_k": TOP_K, "seed": self.seed}
        said = {name: getattr(self, name) for name in self.drawn}
        return {"temperature": 1.0, **said, "seed": self.seed}

    def described(self, free: bool = True) -> str:
        """In a few words: `beams 4`, `greedy`, `temperature 0.8, top-k 40, seed 0`."""
        if self.beams > 1:
            return f"{self.beams} beams"
        options = self.sampling(free)
        if options["temperature"] == 0:
            return "greedy"
        return ", ".join(f"{name.replace('_', '-')} {value:g}" for name, value in options.items())


def _typed(name: str) -> str:
    return f"--{name.replace('_', '-')}"
