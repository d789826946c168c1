"""How the contract suite tells what it found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest
from fiberq_contract.command import main
from fiberq_contract.recorder import chosen_rules
from fiberq_contract.report import Report, Result, compare, dump_json, dump_junit, dump_markdown, side_by_side
from fiberq_contract.rules import RULES, BrokenRule

from fiberq.abc import Capabilities

CAPABILITIES = Capabilities(("ipc",), forks=True)
CHOSEN = ["MSG-1", "MSG-2", "ROUTE-1", "ADDR-2", "PROC-1", "PROC-3", "AUTH-8"]


def report(*results: Result, capabilities: Capabilities = CAPABILITIES) -> Report:
    made = Report("mine", "my_package:Mine", capabilities, CHOSEN, quick=False)
    made.plan({"a": ["MSG-1", "MSG-2"], "b": ["MSG-1"], "c": ["ROUTE-1"], "d": ["PROC-1"], "e": ["ADDR-2"]})
    for each in results:
        made.add(each)
    return made


def passed(*names: str) -> list[Result]:
    return [Result(name, "passed", 0.5, "") for name in names]


def failed(name: str, *broken: str) -> Result:
    return Result(name, "failed", 0.5, "AssertionError: 1 != 2\nat somewhere", broken)


def statuses(made: Report) -> dict[str, str]:
    return {each.id: made.status(each) for each in made.rules}


def words(made: Report) -> str:
    return "\n".join(line for line, _ in made.summary())


def test_a_transport_is_right_when_all_that_applies_holds() -> None:
    made = report(*passed("a", "b", "c", "d"))
    assert statuses(made) == {
        "MSG-1": "holds",
        "MSG-2": "holds",
        "ROUTE-1": "holds",
        "ADDR-2": "does not apply",
        "PROC-1": "holds",
        "PROC-3": "does not apply",
        "AUTH-8": "untestable",
    }
    assert made.right
    assert "mine keeps the chosen rules: 4 holds, 2 does not apply, 1 untestable" in words(made)


def test_what_was_not_tested_is_not_right() -> None:
    made = report(*passed("a", "b", "c"), Result("d", "skipped", 0.0, "no fork here"))
    assert statuses(made)["PROC-1"] == "not tested"
    assert not made.right
    assert "NOT TESTED PROC-1: no fork here" in words(made)


def test_a_rule_is_told_when_its_last_test_is_done_and_only_if_it_applies() -> None:
    made = report()
    told: list[Sequence[str]] = [[each.id for each in made.add(result)] for result in passed("a", "b", "c", "e")]
    assert told == [["MSG-2"], ["MSG-1"], ["ROUTE-1"], []]


def test_a_broken_rule_comes_with_what_was_seen_and_a_hint() -> None:
    made = report(failed("a"), *passed("b", "c", "d"))
    assert statuses(made)["MSG-1"] == statuses(made)["MSG-2"] == "broken"
    told = words(made)
    for word in (
        f"BROKEN MSG-2: {RULES['MSG-2'].sentence}",
        "AssertionError: 1 != 2",
        f"Hint: {RULES['MSG-2'].hint}",
        "fiberq contract mine --rule MSG-2",
    ):
        assert word in told


def test_a_test_that_says_which_rule_is_broken_breaks_no_other() -> None:
    made = report(failed("a", "MSG-2"), *passed("b", "c", "d"))
    assert statuses(made)["MSG-2"] == "broken"
    assert statuses(made)["MSG-1"] == "holds"
    assert BrokenRule("MSG-1", "text").rules == ("MSG-1",)
    with pytest.raises(KeyError):
        BrokenRule("MSG-1000", "text")


def test_the_report_says_which_capability_switched_what() -> None:
    told = words(report(*passed("a", "b", "c", "d")))
    assert "forks=True: PROC-1 tested; PROC-3 not" in told
    assert "schemes do not have tcp: ADDR-2 not" in told


def test_one_error_that_breaks_many_rules_is_told_once() -> None:
    made = Report("mine", "my_package:Mine", CAPABILITIES, RULES, quick=False)
    made.plan({each: [each] for each in RULES})
    for each in RULES:
        made.add(failed(each))
    told = words(made)
    assert told.count("BROKEN") == told.count("1 != 2") == 1
    assert f"\n  CAP-1: {RULES['CAP-1'].sentence}\n  CAP-2: {RULES['CAP-2'].sentence}\n" in told
    assert "  and ADDR-5, ADDR-6, " in told
    assert "  First seen in CAP-1\n    at somewhere\n" in told
    assert RULES["CAP-1"].hint in told
    assert "fiberq contract mine --rule CAP-1" in told


def test_what_a_stopped_run_left_out_is_not_tested_and_says_why() -> None:
    made = report(*passed("b", "c"))
    made.stopped = "it died often"
    assert statuses(made)["MSG-1"] == statuses(made)["MSG-2"] == statuses(made)["PROC-1"] == "not tested"
    assert statuses(made)["ROUTE-1"] == "holds"
    assert "NOT TESTED MSG-1, MSG-2, PROC-1: it died often" in words(made)
    rules = {each["id"]: each for each in json.loads(dump_json([made]))["rules"]}
    assert rules["PROC-1"]["why"] == "it died often"
    assert rules["ROUTE-1"]["why"] == ""
    assert dump_junit([made]).count("it died often") == 3


def test_one_reason_that_leaves_many_rules_untested_is_told_once() -> None:
    made = Report("mine", "my_package:Mine", CAPABILITIES, RULES, quick=False)
    made.plan({each: [each] for each in RULES})
    made.stopped = "it died often"
    assert "NOT TESTED: it died often\n  CAP-1, CAP-2, " in words(made)
    assert words(made).count("it died often") == 1


def test_a_transport_on_which_no_node_can_listen_comes_with_a_warning() -> None:
    made = Report("mine", "my_package:Mine", Capabilities(("tcp",)), RULES, quick=False)
    tests = [each.id for each in made.rules if each.testable and each.applies(made.capabilities)]
    made.plan({each: [each] for each in tests})
    for each in passed(*tests):
        made.add(each)
    assert made.right
    warning = "mine declares no ipc:// addresses, at which a program's own node listens: queues and pipes cannot run"
    assert f"WARNING: {warning}" in words(made)
    assert "34 rules" in words(made)
    assert "mine keeps the contract for sockets, and runs no queues and pipes: " in words(made)
    assert warning in json.loads(dump_json([made]))["warnings"][0]
    assert "WARNING" not in words(report(*passed("a", "b", "c", "d")))


def test_where_no_chosen_rule_applies_the_report_says_that_nothing_was_tested() -> None:
    made = Report("mine", "my_package:Mine", CAPABILITIES, ["PROC-3", "AUTH-8"], quick=False)
    made.plan({})
    assert not made.tested
    told = words(made)
    assert "NOTHING WAS TESTED of mine" in told
    assert "PROC-3: does not apply (forks=True); AUTH-8: untestable (because " in told
    assert "keeps" not in told


def test_json_holds_all_of_it() -> None:
    data = json.loads(dump_json([report(failed("a", "MSG-2"), *passed("b", "c", "d"))]))
    assert data["transport"] == "mine"
    assert data["right"] is False
    rules = {each["id"]: each for each in data["rules"]}
    assert rules["MSG-2"]["status"] == "broken"
    assert rules["MSG-2"]["tests"][0]["seen"].startswith("AssertionError")
    assert rules["PROC-3"]["because"] == "forks=True"
    assert len(json.loads(dump_json([report(), report()]))) == 2


def test_junit_counts_what_it_holds() -> None:
    control = Result("c", "failed", 0.1, "got \x00\x1b[31m")
    root = ElementTree.fromstring(dump_junit([report(failed("a", "MSG-2"), *passed("b"), control)]))
    suite = root[0]
    assert [suite.get(each) for each in ("tests", "failures", "errors", "skipped")] == ["7", "2", "1", "3"]
    by_id = {case.get("name"): case for case in suite}
    assert by_id["MSG-1"].find("failure") is None
    failure = by_id["ROUTE-1"].find("failure")
    assert failure is not None
    assert "\\x00\\x1b[31m" in str(failure.text)
    assert by_id["PROC-1"].find("error") is not None
    assert by_id["AUTH-8"].find("skipped") is not None


def test_transports_side_by_side() -> None:
    other = report(*passed("a", "b", "c"), capabilities=CAPABILITIES._replace(forks=False))
    found = {rule.id: both for rule, both in compare([report(failed("c"), *passed("a", "b", "d")), other])}
    assert found["ROUTE-1"] == ["broken", "holds"]
    assert found["PROC-1"] == ["holds", "does not apply"]


def test_side_by_side_as_plain_text_cuts_nothing_off() -> None:
    both = [report(failed("c"), *passed("a", "b", "d")), report(*passed("a", "b", "c", "d"))]
    first, *lines, last = side_by_side(both)
    assert first.split() == ["rule", "mine", "mine", "sentence"]
    assert len(lines) == len(CHOSEN)
    assert all(line.endswith(f"  {RULES[each].sentence}") for each, line in zip(CHOSEN, lines, strict=True))
    assert len({line.index(RULES[each].sentence) for each, line in zip(CHOSEN, lines, strict=True)}) == 1
    assert last == "They differ in 1 of 7 rules: ROUTE-1"


def test_markdown_has_a_column_for_each_transport() -> None:
    told = dump_markdown([report(failed("c"), *passed("a", "b", "d")), report(*passed("a", "b", "c", "d"))])
    assert "## Routing\n\n| rule | | tests | mine | mine |" in told
    assert f"| ROUTE-1 | {RULES['ROUTE-1'].sentence} | {len(RULES['ROUTE-1'].tests)} | broken | holds |" in told


def test_rules_are_chosen_by_id_or_area() -> None:
    assert chosen_rules([]) == list(RULES)
    assert chosen_rules(["msg-2,ROUTE", "CAP-1"]) == [
        each for each in RULES if each in ("MSG-2", "CAP-1") or each.startswith("ROUTE-")
    ]
    with pytest.raises(ValueError, match="no rule 'ROUTES'; the nearest is ROUTE"):
        chosen_rules(["ROUTES"])
    with pytest.raises(ValueError, match=r"no rule 'XYZZY'; the areas are CAP, REG, .*; RULES.md lists all"):
        chosen_rules(["xyzzy"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name a transport; installed: "),
        (["nosuch"], "no transport is named 'nosuch'"),
        (["zmq", "--rule", "NO-1"], "there is no rule 'NO-1'"),
        (["zmq", "--output", "x"], "--output needs --report"),
        (["zmq", "--report", "json", "--output", "/nowhere/x"], "--output /nowhere/x: there is no such directory"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert text in capsys.readouterr().err


def test_a_run_that_could_test_nothing_has_the_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "--rule", "AUTH-8,PROC-3"]) == 2
    assert "NOTHING WAS TESTED of stream" in capsys.readouterr().out


def test_a_comparison_that_is_piped_has_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--compare", "stream", "zmq", "--rule", "CAP-1,CAP-2", "--quick"]) == 0
    shown = capsys.readouterr().out.splitlines()
    for each in ("CAP-1", "CAP-2"):
        assert any(line.startswith(f"{each} ") and line.endswith(RULES[each].sentence) for line in shown)
