"""What is said of dropped rows, and when data are refused for them. Less than a second."""

from __future__ import annotations

import pytest

from data.conversations import NOTHING_LEFT
from data.report import DataReport, check_report, flaws_table


def report_of(kept: int, dropped: dict[str, int], name: str = "some/data") -> DataReport:
    report = DataReport(name, None, rows_read=kept + sum(dropped.values()), kept=kept)
    for reason, rows in dropped.items():
        report.dropped[reason] = {"rows": rows, "first": [*range(3, 3 + min(rows, 5))]}
    return report


def refusal(reports: list[DataReport], strict: bool = False, max_dropped: float = 0.1) -> str:
    with pytest.raises(ValueError) as error:
        check_report(reports, strict, max_dropped)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_data_without_flaws_pass_any_check():
    check_report([report_of(5, {})], strict=True, max_dropped=0)


def test_strict_refuses_a_single_dropped_row():
    """Seen to fail when strictness asked for more than one."""
    report = report_of(999, {"empty turn": 1})
    check_report([report], strict=False, max_dropped=0.1)
    said = refusal([report_of(9, {}), report], strict=True)
    for part in ("some/data", "1 of 1000 rows", "empty turn: 1, first row 3", "--strict-data"):
        assert part in said


def test_the_share_of_dropped_rows_is_limited_in_each_data_set():
    """Seen to fail when the limit itself was refused, and when data sets were added up."""
    at_limit, above = report_of(90, {"empty turn": 10}), report_of(89, {"empty turn": 11})
    check_report([at_limit], strict=False, max_dropped=0.1)
    check_report([above], strict=False, max_dropped=0.11)
    check_report([report_of(1, {"empty turn": 99})], strict=False, max_dropped=1)
    said = refusal([report_of(100_000, {}), above])
    assert "11 of 100 rows (11%)" in said
    assert "--max-dropped allows 10%" in said
    assert "0 to 1" in refusal([at_limit], max_dropped=10)
    assert "0 to 1" in refusal([at_limit], max_dropped=float("nan"))


def test_data_without_a_usable_row_are_refused_whatever_is_allowed():
    """Seen to fail when an allowed share of 1 let them pass."""
    said = refusal([report_of(0, {NOTHING_LEFT: 30})], max_dropped=1)
    assert "30 of 30 rows (100%)" in said
    assert "--max-length" in said
    said = refusal([report_of(5, {}), report_of(0, {"not a conversation": 3})], max_dropped=1)
    assert "conversations or messages, or instruction and output" in said
    assert "no rows" in refusal([report_of(0, {})], max_dropped=1)


def test_the_table_of_flaws_has_a_line_for_each():
    assert flaws_table([report_of(3, {})]) == ""
    table = flaws_table([report_of(3, {"empty turn": 2, "unknown role": 17})]).splitlines()
    assert [line.split("  ")[0] for line in table] == [
        "dropped because",
        "unknown role",
        "empty turn",
    ]
    assert table[1].split("  ", 1)[1].split() == ["17", "3,", "4,", "5,", "6,", "7,", "..."]
    assert table[2].endswith(" 2  3, 4")
    both = flaws_table([report_of(3, {"empty turn": 2}), report_of(1, {"empty turn": 1}, "b")])
    assert "some/data: empty turn" in both
    assert "b: empty turn" in both
