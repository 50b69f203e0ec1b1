"""rich's console for texts of data, files and configs: nothing in them is markup, nothing steers the terminal.

What is to be bold is a `Text` with a style.
"""

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.segment import Segment

from lit_tfm.terminal import harmless


class Console(rich.console.Console):
    """`[link=...]`, `[bold]` and `:smile:` are shown as they stand; control characters by their number."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Everything that is printed passes here, whatever table or panel it stands in."""
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()):
                yield segment  # rich's own moves of the cursor are not text
            else:
                yield Segment(harmless(segment.text), segment.style)
