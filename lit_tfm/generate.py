"""Write text with a trained run: `python -m lit_tfm.generate RUN --prompt "Once upon a time"`.

A decoder goes on with the prompt; an encoder-decoder fills its blanks, `___`, or answers it. Needs the run folder only.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lit_tfm import targets
from lit_tfm.errors import UserError, nearest
from lit_tfm.generation.request import NEW_TOKENS, PER_BLANK, TEMPERATURE, TOP_K, Request

DESCRIPTION = """Write text with a trained run; its folder is all that is needed.
A decoder goes on with the prompt. An encoder-decoder fills its blanks, ___, or
answers it. Texts go to standard output, what is told about them to standard
error."""

EPILOG = r"""examples:
  generate RUN --prompt "The river" --stop "\n"
  generate RUN --prompt "the ___ of the ___ was built"
  generate RUN --file start.txt --num-samples 3 --top-p 0.95
  generate RUN --prompt "The" --beams 4 --scores
  generate RUN --chat --you "ROMEO: " --reply "\nJULIET: "
"""


class Parser(argparse.ArgumentParser):
    """Mistakes in one line, with the nearest spelling."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0] if "unrecognized" in message else ""
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        near = nearest(unknown.split("=")[0], options) if unknown.startswith("-") else ""
        if unknown and not unknown.startswith("-"):
            near = ', give the text behind --prompt, e.g. --prompt "Once upon a time"'
        raise UserError(f"{message}{near or '; --help lists the options'}")


def parser() -> Parser:
    new = Parser(
        "python -m lit_tfm.generate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = new.add_argument
    add("run", metavar="RUN", help="a run folder, outputs/<experiment>/<time>")
    what = new.add_argument_group("what to go on with (without any of these: standard input)")
    what.add_argument("--prompt", action="append", metavar="TEXT", help='may be repeated; "" begins a new document')
    what.add_argument("--file", action="append", metavar="PATH", help="a text file as one prompt; - is standard input")
    what.add_argument("--chat", action="store_true", help="a conversation, turn by turn")
    what.add_argument("--you", default="", metavar="TEXT", help="--chat: written before each of your turns")
    what.add_argument("--reply", default="", metavar="TEXT", help="--chat: written before each of the model's turns")
    how = new.add_argument_group(
        "how to choose tokens",
        f"Where nothing is said, text that goes on is drawn with temperature {TEMPERATURE} from\n"
        f"  the {TOP_K} likeliest tokens, and blanks are filled by the likeliest.",
    )
    how.add_argument("--greedy", action="store_true", help="always the likeliest")
    how.add_argument("--temperature", type=float, metavar="T", help="below 1 bolder, above 1 wilder; 0 is --greedy")
    how.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest")
    how.add_argument("--top-p", type=float, metavar="P", help="draw from the fewest whose probabilities reach P")
    how.add_argument("--min-p", type=float, metavar="P", help="draw from those at least P times the likeliest")
    how.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: against what was said before"
    )
    how.add_argument("--seed", type=int, default=0, help="of the draws; the same gives the same text")
    how.add_argument("--beams", type=int, default=1, metavar="N", help="search the likeliest texts with N beams")
    how.add_argument("--length-penalty", type=float, metavar="X", help="of beams: above 0 favours longer texts (1)")
    how.add_argument("--early-stopping", action="store_true", help="of beams: end when N texts are finished")
    end = new.add_argument_group("how much")
    end.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=f"at most ({NEW_TOKENS}; {PER_BLANK} for each blank)"
    )
    end.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated; \\n works"
    )
    end.add_argument("--num-samples", type=int, default=1, metavar="N", help="texts for each prompt")
    end.add_argument(
        "--slide", action="store_true", help="when the model's positions are full, forget the older half and go on"
    )
    show = new.add_argument_group("from what, and how it is shown")
    show.add_argument("--checkpoint", metavar="WHICH", help="best, last or a file; default: best where there is one")
    show.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    show.add_argument("--scores", action="store_true", help="log-probabilities, of each token and summed")
    show.add_argument("--json", action="store_true", help="a line of JSON for each text")
    show.add_argument("--no-color", action="store_true", help="also: NO_COLOR=1")
    return new


def generate(arguments: Sequence[str] | None = None) -> None:
    """The verb. Raises UserError."""
    options = parser().parse_args(targets.take(arguments))
    request = Request(
        max_new_tokens=options.max_new_tokens,
        greedy=options.greedy,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        beams=options.beams,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        num_samples=options.num_samples,
        stops=tuple(map(unescaped, options.stop)),
        seed=options.seed,
        scores=options.scores,
        slide=options.slide,
    )
    request.check()
    check_chat(options)
    texts = [] if options.chat else prompts(options)

    from lit_tfm.generation.write import Writer

    screen = make_screen(options)
    task = open_task(options, screen)
    writer = Writer(task, request)
    if options.chat:
        chat(writer, screen, options)
    else:
        show(writer, screen, [task.question(text) for text in texts], options.json)


def check_chat(options: argparse.Namespace) -> None:
    """Raises UserError for options that a conversation has no use for, or only a conversation has."""
    if not options.chat:
        for name in ("you", "reply"):
            if getattr(options, name):
                raise UserError(f"--{name} belongs to a conversation; type --chat as well")
        return
    for name in ("prompt", "file", "json"):
        if getattr(options, name):
            raise UserError(f"--{name} and --chat: a conversation is typed line by line; leave one out")
    if options.num_samples > 1 or options.beams > 1:
        raise UserError("--chat gives one reply at a time; leave out --num-samples and --beams")


def prompts(options: argparse.Namespace) -> list[str]:
    """In the order: --prompt, --file, else standard input."""
    files = options.file or []
    if not options.prompt and not files:
        if sys.stdin is None or sys.stdin.isatty():
            raise UserError('no prompt; type --prompt "Once upon a time", --file PATH or --chat')
        files = ["-"]
    return [*(options.prompt or []), *map(read, files)]


def read(name: str) -> str:
    """A file's text without its last line end. Raises UserError where it has none."""
    path, shown = Path(name).expanduser(), "standard input" if name == "-" else name
    try:
        content = sys.stdin.buffer.read() if name == "-" else path.read_bytes()
    except OSError as error:
        near = nearest(path.name, [p.name for p in path.parent.glob("*")]) if path.parent.is_dir() else ""
        raise UserError(f"{shown}: can't be read ({error.strerror}){near or '; name a text file'}") from error
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: no text in UTF-8 (byte {error.start}); convert it, or name another file") from error
    if "\0" in text:
        raise UserError(f"{shown}: binary, not text; name a text file")
    if not text.strip():
        raise UserError(f'{shown} is empty; to begin a new document, type --prompt ""')
    return text.removesuffix("\n").removesuffix("\r")


def unescaped(text: str) -> str:
    """`\\n` and `\\t` as they are typed in a shell."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def open_task(options: argparse.Namespace, screen: Any) -> Any:
    """The trained task on its device. Raises UserError for a run that can't write."""
    from lit_tfm import trained
    from lit_tfm.runs import RunFolder

    run = RunFolder.open(options.run)
    kind = trained.task_class(run)
    if not hasattr(kind, "question"):
        why = getattr(kind, "writes_nothing", f"{kind.__name__} generates no text")
        raise UserError(f"{run.path}: {why}")
    device = device_of(options.device)
    task, weights = trained.load(run, options.checkpoint)
    status = None
    with contextlib.suppress(ValueError):  # a summary.json cut short: the weights are whole
        status = run.status()
    if status != "finished":
        screen.note(f"{run.path}: the run is {status or 'of unknown status'}; its weights so far: {weights.name}")
    return task.to(device)


def device_of(name: str) -> Any:
    """Raises UserError for a device that is not there."""
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["cpu", *(["cuda"] if cuda else []), *(f"cuda:{i}" for i in range(cuda))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    if name not in there:
        raise UserError(f"--device {name}: not here{nearest(name, there)}; there is auto, {', '.join(there)}")
    return torch.device(name)


def make_screen(options: argparse.Namespace) -> Any:
    import os

    from lit_tfm.generation.screen import Screen

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that knows no é gets a ?, not a traceback
    colour = not options.no_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Screen(sys.stdout, sys.stderr, colour)


def show(writer: Any, screen: Any, questions: list[Any], json: bool) -> None:
    """Write the answers, a single one as it comes."""
    from lit_tfm.generation.screen import as_json
    from lit_tfm.terminal import out

    request, token = writer.request, writer.task.facts.tokenizer.token
    one = len(questions) * request.num_samples == 1 and not json
    streamed = one and request.beams == 1 and not questions[0].blanks
    if streamed:
        screen.question(questions[0])
    began = time.perf_counter()
    try:
        answers = writer.write(questions, screen.write if streamed else None)
    except KeyboardInterrupt:
        screen.write("\n")
        raise SystemExit(130) from None
    seconds = time.perf_counter() - began
    for number, (question, some) in enumerate(zip(questions, answers, strict=True), start=1):
        for rank, answer in enumerate(some, start=1):
            if json:
                out(as_json(question, answer, rank, token))
                continue
            if streamed:
                screen.write("\n")
            else:
                if not one:
                    screen.header(title(number, len(questions), rank, request, answer))
                screen.answer(question, answer)
            if request.scores:
                screen.scores(answer, token)
    described = request.described(free=questions[0].goes_on)
    screen.pace([answer for some in answers for answer in some], seconds, described, writer.positions)


def title(number: int, questions: int, rank: int, request: Request, answer: Any) -> str:
    parts = [f"prompt {number}"] if questions > 1 else []
    if request.num_samples > 1:
        parts.append(f"{'beam' if request.beams > 1 else 'sample'} {rank}")
    if answer.score is not None:
        parts.append(f"score {answer.score:.4f}")
    return ", ".join(parts)


def chat(writer: Any, screen: Any, options: argparse.Namespace) -> None:
    from lit_tfm.generation.chat import HELP, Chat, typed_lines

    ask: Callable[[str], str] | None = None
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # arrow keys and history for input()
        ask = input
        what = "goes on with what is said" if writer.task.converses else "fills blanks (___) or answers a text"
        free = writer.request.described(free=writer.task.converses)
        screen.note(f"{options.run}\n{what}; {writer.positions} positions, {free}\n{HELP}")
    try:
        Chat(writer, screen, unescaped(options.you), unescaped(options.reply)).loop(
            typed_lines(sys.stdin, ask, "> "),
        )
    except KeyboardInterrupt:
        screen.write("\n")
        raise SystemExit(130) from None


def main() -> None:
    from lit_tfm.command_line import run_verb

    sys.exit(run_verb(generate))


if __name__ == "__main__":
    main()
