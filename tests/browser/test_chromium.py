"""The browser of these tests sees what a person would: text behind shadow roots, clicks, dialogs, blank pages."""

PAGE = """<!doctype html><body style="background:#fff"><b>plain</b><div id="host"></div>
<button onclick="this.textContent='clicked'">press</button>
<script>
  document.getElementById('host').attachShadow({mode: 'open'}).innerHTML = '<i class="deep">in the shadow</i>';
  document.currentScript.remove();
</script></body>"""


def page_of(chromium, tmp_path, content):
    (tmp_path / "page.html").write_text(content)
    return chromium.open((tmp_path / "page.html").as_uri())


def test_text_clicks_and_pictures(chromium, tmp_path):
    page = page_of(chromium, tmp_path, PAGE)
    assert page.text().split("\n") == ["plain", "in the shadow", "press"]
    assert page.exists("i.deep", has="shadow")
    page.click("button", has="press")
    assert "clicked" in page.text()
    assert page.colours(page.picture(tmp_path / "picture.png")) > 10
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert page.troubles == []
    page.close()


def test_a_blank_page_and_a_script_that_got_in_are_noticed(chromium, tmp_path):
    script = "setTimeout(() => { alert('got in'); throw new Error('then failed') }, 0)"
    page = page_of(chromium, tmp_path, f"<body style='background:#fff'><script>{script}</script></body>")
    page.js("new Promise(done => setTimeout(done, 100))")
    assert page.colours(page.picture()) == 1
    dialog, failure = page.troubles
    assert dialog == "dialog: got in"
    assert "then failed" in failure
    page.close()
