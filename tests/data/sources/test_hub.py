"""The hub for real: `datasets` over HTTP against a server of our own, in processes with caches of their own.

Both libraries read their environment when they are imported, hence a process each.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PREAMBLE = """
import json, sys, time
from lit_tfm.data.sources.hub import Hub, HubUnreachable
from lit_tfm.data.sources.resolve import resolve
from lit_tfm.errors import UserError
wikitext = {"repo": "owner/tiny", "config": "wikitext-tiny", "document": "wikitext"}
def show(**what):
    print(json.dumps(what))
"""


def in_process(script: str, home: Path, endpoint: str, **environment: str) -> dict:
    """What the script shows, run with the hub at `endpoint` and its cache in `home`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    env |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_ENDPOINT": endpoint, **environment}
    env["HF_HUB_DISABLE_TELEMETRY"] = "1"
    command = [sys.executable, "-c", PREAMBLE + script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


READ = """
source = resolve(hub=wikitext, fallback="pydoc")
show(name=source.name, splits=source.splits(), notice=source.notice, running=source.running,
     documents={split: list(source.documents(split)) for split in source.splits()}, hash=source.fingerprint())
"""


def test_articles_over_the_network_then_from_the_cache_without_it(hub_server, closed_endpoint, tmp_path):
    first = in_process(READ, tmp_path, hub_server.endpoint)
    assert first["name"] == "owner/tiny/wikitext-tiny"
    assert first["splits"] == ["train", "validation", "test"]
    assert first["notice"] is None
    assert first["running"]
    one, two = first["documents"]["train"]
    assert one == "\n = One = \n\n The first article . \n = = Part = = \n More . \n\n"
    assert two == " = Two = \n\n Short . \n"
    assert any(r.startswith("GET") and r.endswith(".parquet") for r in hub_server.requests)

    # Asking would end in HubUnreachable: what is cached is used without.
    assert in_process(READ, tmp_path, closed_endpoint) == first


def test_rows_with_the_class_names_of_the_data_set(hub_server, tmp_path):
    script = """
source = Hub("owner/tiny", "sst-tiny", text="sentence")
show(labels=source.labels, splits=source.splits(), rows={s: list(source.rows(s)) for s in source.splits()},
     documents=list(source.documents("train")))
"""
    shown = in_process(script, tmp_path, hub_server.endpoint)
    assert shown["labels"] == ["negative", "positive"]
    assert shown["splits"] == ["train", "test"]
    assert [(row["text"], row["label"]) for row in shown["rows"]["train"]] == [
        ("good", "positive"),
        ("bad", "negative"),
        ("fine", "positive"),
    ]
    assert shown["rows"]["test"] == [{"text": "hm", "text_b": None, "label": None}]
    assert shown["documents"] == ["good", "bad", "fine"]


MISTAKES = """
told = {}
for name, options in {
    "repo": {"repo": "owner/huge"},
    "config": {"repo": "owner/tiny", "config": "wikitext-tny"},
    "column": {"repo": "owner/tiny", "config": "sst-tiny", "text": "sentense"},
    "document": {"repo": "owner/tiny", "document": "wikitex"},
}.items():
    try:
        source = Hub(**options).load()
        list(source.rows("train"))
    except UserError as error:
        told[name] = [type(error).__name__, str(error)]
show(**told)
"""


def test_mistakes_are_told_in_one_line(hub_server, tmp_path):
    told = in_process(MISTAKES, tmp_path, hub_server.endpoint)
    assert {kind for kind, _ in told.values()} == {"UserError"}, "the hub was there: not a matter of the network"
    assert "owner/huge: no such data set" in told["repo"][1]
    assert "did you mean 'sentence'?" in told["column"][1]
    assert "did you mean 'wikitext'?" in told["document"][1]
    assert "wikitext-tiny" in told["config"][1]
    assert "sst-tiny" in told["config"][1]
    assert all("\n" not in text for _, text in told.values())


UNREACHABLE = """
begin = time.perf_counter()
try:
    resolve(hub=wikitext)
except HubUnreachable as error:
    show(seconds=time.perf_counter() - begin, told=str(error), imported="datasets" in sys.modules)
"""


@pytest.mark.parametrize("endpoint", ["closed_endpoint", "silent_endpoint", "no_such_name", "no_address"])
def test_an_unreachable_hub_is_found_out_within_three_seconds(endpoint, request, tmp_path):
    given = {"no_such_name": "http://hub.invalid", "no_address": "nonsense"}
    address = given.get(endpoint) or request.getfixturevalue(endpoint)
    shown = in_process(UNREACHABLE, tmp_path, address)
    assert shown["seconds"] < 3
    assert "owner/tiny is not in the cache" in shown["told"]
    assert "data.path=PATH" in shown["told"]
    assert "data.fallback=pydoc" in shown["told"]
    assert not shown["imported"], "two seconds for nothing"


def test_offline_by_choice_asks_nobody(hub_server, tmp_path):
    shown = in_process(UNREACHABLE, tmp_path, hub_server.endpoint, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in shown["told"]
    assert hub_server.requests == []


def test_another_configuration_in_the_cache_does_not_count(hub_server, tmp_path):
    script = 'Hub("owner/tiny", "sst-tiny", text="sentence").load()\n' + READ
    assert in_process(script, tmp_path, hub_server.endpoint)["splits"] == ["train", "validation", "test"]


def test_the_fallback_says_so(closed_endpoint, tmp_path):
    script = f"""
import logging
logging.basicConfig(level="WARNING", stream=sys.stdout)
source = resolve(hub=wikitext, fallback="pydoc", cache_dir={str(tmp_path)!r})
show(notice=source.notice, name=source.name, origin=source.origin)
"""
    shown = in_process(script, tmp_path, closed_endpoint)
    assert shown["origin"] == "pydoc"
    for part in ("owner/tiny", "pydoc (Python 3", "can't be reached", "data.path=PATH"):
        assert part in shown["notice"]
