"""Benchmarks' common ground: turns are taken, ratios keep their spread, and a table replaces only itself."""

import measure
import pytest


def test_contestants_take_turns_and_the_order_turns_round() -> None:
    order, clock = [], iter(range(100))

    def contestant(name):
        order.append(name)
        return float(next(clock))

    figures = measure.alternate({n: (lambda n=n: contestant(n)) for n in ("ours", "peer", "bare")}, rounds=2)
    assert order == ["ours", "peer", "bare", "bare", "peer", "ours"]
    assert figures == {"ours": [0, 5], "peer": [1, 4], "bare": [2, 3]}


def test_a_ratio_is_that_of_medians_and_its_spread_that_of_rounds() -> None:
    ratio = measure.Ratio.of(ours=[1, 2, 3], theirs=[2, 8, 4])
    assert (ratio.median, ratio.low, ratio.high) == (0.5, 0.25, 0.75)
    assert str(ratio) == "0.5 (0.25 to 0.75)"


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        measure.Ratio.of([1, 2], [1])


def test_a_table_replaces_the_one_before_and_nothing_else(tmp_path, capsys) -> None:
    page = tmp_path / "RESULTS.md"
    page.write_text("above\n<!-- it -->\nold\n<!-- end of it -->\nbelow\n")
    section = measure.table(["a", "b"], [[1, 2.5]])
    measure.publish("it", section, results=page)
    assert page.read_text() == f"above\n<!-- it -->\n{section}\n<!-- end of it -->\nbelow\n"
    measure.publish("it", "new", dry=True, results=page)
    assert section in page.read_text()
    with pytest.raises(SystemExit, match="lacks the lines"):
        measure.publish("other", section, results=page)


def test_the_command_of_a_table_names_no_place_of_the_machine(monkeypatch) -> None:
    typed = [
        "benchmarks/it.py",
        "--path",
        "/data/sets/wikitext-2",
        "data.path=/data/sst2",
        "cache_dir=/x/y",
        "--dry",
        "a/b",
    ]
    monkeypatch.setattr("sys.argv", typed)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert measure.command() == "OMP_NUM_THREADS=1 python benchmarks/it.py --path wikitext-2 data.path=sst2 a/b"
