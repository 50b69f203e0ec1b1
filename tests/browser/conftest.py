"""Headless Chromium for tests that look at pages as a person does: TensorBoard, the HTML reports.

Debian's package is driven over its own debugging pipe (Chrome DevTools Protocol, one JSON message after another, each
ended by a zero byte): no driver, no package of Python's. Where it is not installed these tests are skipped, and say so.

    def test_report(chromium, tmp_path):
        page = chromium.open((tmp_path / "report.html").as_uri())
        page.wait_for("document.querySelectorAll('tr').length > 3")
        page.click("th:nth-child(2)")
        assert page.colours(page.picture(tmp_path / "report.png")) > 50
        assert not page.troubles
"""

import base64
import io
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb"),
    # WebGL without a graphics card: the embedding projector draws with it.
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
]
# All text of a page as it is shown, through shadow roots (Polymer) and frames of its own origin.
TEXT = """(() => {
  const parts = [];
  const walk = node => {
    if (node.nodeType === 3) { if (node.textContent.trim()) parts.push(node.textContent.trim()); return; }
    if (node.nodeType === 1 && (['SCRIPT', 'STYLE', 'TEMPLATE', 'DOM-MODULE'].includes(node.tagName)
        || getComputedStyle(node).display === 'none')) return;
    if (node.tagName === 'IFRAME' && node.contentDocument?.body) walk(node.contentDocument.body);
    if (node.tagName === 'INPUT' && node.value) parts.push(node.value);
    if (node.shadowRoot) for (const child of node.shadowRoot.childNodes) walk(child);
    for (const child of node.childNodes) walk(child);
  };
  if (document.body) walk(document.body);
  return parts.join('\\n');
})()"""
# find('a', 'b'): the first element that matches, through shadow roots and frames; `has` = text it has to contain.
FIND = """((selector, has) => {
  const search = root => {
    for (const found of root.querySelectorAll(selector))
      if (!has || found.textContent.includes(has)) return found;
    for (const inner of root.querySelectorAll('*')) {
      const deeper = inner.shadowRoot || (inner.tagName === 'IFRAME' && inner.contentDocument);
      const found = deeper && search(deeper);
      if (found) return found;
    }
    return null;
  };
  return search(document);
})"""


class Chromium:
    """One browser process; `open` gives pages."""

    def __init__(self, program: str, folder: Path, size: tuple[int, int] = (1400, 1000)) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [program, *FLAGS, f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}"]
        # The browser reads from descriptor 3 and writes to 4.
        join = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", join, "bash", *command, "--remote-debugging-pipe", "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its helpers end with it
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.size, self.events, self._number, self._read = size, [], 0, b""

    def call(self, method: str, session: str | None = None, timeout: float = 60.0, **params: Any) -> dict:
        """One command and its answer; what the browser tells unasked is kept in `events`."""
        self._number = number = self._number + 1
        message = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + timeout
        while True:
            answer = self._receive(until, method)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)
            if answer.get("method") == "Page.javascriptDialogOpening":  # it would hold up everything
                self._number += 1
                close = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                os.write(self._out, json.dumps({**close, "sessionId": answer["sessionId"]}).encode() + b"\0")

    def _receive(self, until: float, method: str) -> dict:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser did not answer {method}")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def open(self, address: str) -> "Page":
        target = self.call("Target.createTarget", url="about:blank")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, target["targetId"], attached["sessionId"])
        page.go(address)
        return page

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._out)
        os.close(self._in)


class Page:
    """A tab."""

    def __init__(self, browser: Chromium, target: str, session: str) -> None:
        self.browser, self.target, self.session = browser, target, session
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        self.resize(*browser.size)

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Pixels of the page; `scale` 2: twice as many for the same content, for pictures to print."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def call(self, method: str, **params: Any) -> dict:
        return self.browser.call(method, self.session, **params)

    def go(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of an expression (awaited where it is a promise)."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression[:200]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, condition: str, seconds: float = 30.0) -> None:
        """Until the expression is true; the page's text is in the message of a failure."""
        until = time.monotonic() + seconds
        while not self.js(f"Boolean({condition})"):
            if time.monotonic() > until:
                raise AssertionError(f"not within {seconds} s: {condition}\nthe page shows:\n{self.text()[:2000]}")
            time.sleep(0.1)

    def wait_for_text(self, *texts: str, seconds: float = 30.0) -> str:
        """Until all of these are shown, each perhaps made of several elements; the page's text."""
        until = time.monotonic() + seconds
        while True:
            shown = self.text()
            joined = shown + shown.replace("\n", "")
            missing = [text for text in texts if text not in joined]
            if not missing:
                return shown
            if time.monotonic() > until:
                raise AssertionError(f"not shown within {seconds} s: {missing}\nthe page shows:\n{shown[:3000]}")
            time.sleep(0.1)

    def text(self) -> str:
        return self.js(TEXT)

    def exists(self, selector: str, has: str = "") -> bool:
        return self.js(f"Boolean({FIND}({json.dumps(selector)}, {json.dumps(has)}))")

    def click(self, selector: str, has: str = "") -> None:
        """A real click in the middle of the first element that matches, scrolled into view."""
        find = f"{FIND}({json.dumps(selector)}, {json.dumps(has)})"
        self.wait_for(find)
        place = self.js(
            f"""(() => {{ const it = {find}; it.scrollIntoView({{block: 'center', behavior: 'instant'}});
            const box = it.getBoundingClientRect(); let x = box.x + box.width / 2, y = box.y + box.height / 2;
            for (let view = it.ownerDocument.defaultView; view.frameElement; view = view.parent) {{
              const frame = view.frameElement.getBoundingClientRect(); x += frame.x; y += frame.y; }}
            return [x, y]; }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", buttons=1, clickCount=1
            )

    def picture(self, path: str | Path | None = None, settle: float = 0.0) -> Image.Image:
        """What is seen, also as a png where a path is given."""
        time.sleep(settle)
        # Headless pages draw on demand: bring the tab to the front, or old content may be taken.
        self.call("Page.bringToFront")
        data = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(data)
        return Image.open(io.BytesIO(data)).convert("RGB")

    @staticmethod
    def colours(picture: Image.Image) -> int:
        """How many different colours: a page that stayed blank has a handful."""
        return len(picture.getcolors(maxcolors=1 << 24))

    @property
    def troubles(self) -> list[str]:
        """Uncaught exceptions and dialogs (a script that got in) since the page was opened."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session or "method" not in event:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                details = event["params"]["exceptionDetails"]
                found.append(str(details.get("exception", {}).get("description", details.get("text"))))
            if event["method"] == "Page.javascriptDialogOpening":
                found.append(f"dialog: {event['params']['message']}")
        return found

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One headless browser for all tests of a worker."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if not program:
        pytest.skip("Chromium is not installed (apt-get install chromium): pages are not looked at")
    browser = Chromium(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()
