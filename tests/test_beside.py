"""Work beside other work: its result, its errors, and a system without threads to spare."""

from __future__ import annotations

import threading

import pytest

from lora.beside import beside


def test_it_goes_on_while_the_caller_does_something_else():
    """Seen to fail when the work was done where its result is asked for."""
    begun, may_end = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        assert may_end.wait(10)
        return "done"

    result = beside(work)
    assert begun.wait(10)
    may_end.set()
    assert result() == "done"


def test_its_error_is_raised_where_the_result_is_asked_for():
    result = beside(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        result()


def test_without_a_thread_the_work_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch):
    """As under `ulimit -u`. Seen to fail when the error passed: a save would have ended the run."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert beside(lambda: "done")() == "done"
