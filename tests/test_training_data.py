"""What is held out of which data, and what is left to train on. A few seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from token_data import random_rows, small_chat_format, write_jsonl

from data.training_data import Selection, TrainingData, load_training_data


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads data sets, each given by its rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chat_format = small_chat_format(tmp_path / "model")

    def loaded(*data_sets: list[dict], size: int = 5, **changes: Any) -> TrainingData:
        names = [str(tmp_path / f"{number}.jsonl") for number in range(len(data_sets))]
        for name, rows in zip(names, data_sets, strict=True):
            write_jsonl(Path(name), rows)
        given = {
            "weights": (),
            "held_out_from": None,
            "max_length": 400,
            "train_on": "assistant",
            "strict": False,
            "max_dropped": 1.0,
        }
        settings = given | {"held_out_size": size, "chat_format": chat_format} | changes
        return load_training_data(names, **settings)

    return loaded


def digests(selection: Selection) -> list[int]:
    return selection.digests.tolist()


def test_no_copy_of_a_held_out_conversation_is_left_to_train_on(load):
    """Every row stands there three times. Seen to fail when rows were held out by number."""
    data = load(random_rows(60) * 3, size=5)
    held_out, train = digests(data.held_out), digests(data.train)
    assert len(held_out) == len(set(held_out)) == 5
    assert not set(held_out) & set(train) and len(train) == 3 * 55
    assert data.mixture.sizes == (165,)


def test_a_copy_in_another_data_set_is_held_out_too_and_evaluated_once(load):
    """Seen to fail when each data set was looked at by itself."""
    first = random_rows(60)
    second = first[:40] + random_rows(30, seed=1)
    everything = digests(load(first, second, size=0).train)
    data = load(first, second, size=6)
    held_out = digests(data.held_out)
    assert len(held_out) == len(set(held_out)) == 6
    assert digests(data.train) == [digest for digest in everything if digest not in held_out]
    assert len(data.train) < len(everything) - 6  # or none of them had a copy


def test_at_most_a_tenth_of_what_is_different_is_held_out(load):
    """Seen to fail when copies were counted: then nothing would be left to train on."""
    assert len(load(random_rows(40), size=200).held_out) == 4
    data = load(random_rows(3) * 20, size=200)
    assert len(data.held_out) == 0 and len(data.train) == 60


def test_more_data_leaves_most_of_the_choice(load):
    """What is held out depends on what it says, not on where it stands."""
    rows = random_rows(100)
    few = set(digests(load(rows, size=8).held_out))
    assert set(digests(load(rows[::-1], size=8).held_out)) == few
    more = set(digests(load(rows + random_rows(20, seed=1), size=8).held_out))
    assert len(few & more) >= 5


def test_a_file_to_evaluate_on_is_taken_whole_and_kept_out_of_training(load, tmp_path):
    """Seen to fail when a single file had no test split, and when copies stayed in training."""
    rows = random_rows(50)
    test = tmp_path / "mine.jsonl"
    write_jsonl(test, rows[:7] + random_rows(3, seed=1))
    data = load(rows, size=200, held_out_from=str(test))
    assert len(data.held_out) == 10 and len(data.train) == 43
    assert not set(digests(data.held_out)) & set(digests(data.train))
    assert len(load(rows, size=4, held_out_from=str(test)).held_out) == 4


def test_a_data_set_of_which_nothing_is_left_is_refused_by_name(load, tmp_path):
    """Seen to fail when it was found out by dividing by zero."""
    rows = random_rows(5)
    test = tmp_path / "mine.jsonl"
    write_jsonl(test, rows)
    with pytest.raises(ValueError, match=r"every conversation of \S*1.jsonl is held out"):
        load(random_rows(30, seed=1), rows, size=9, held_out_from=str(test), weights=(1.0, 1.0))


def test_a_share_of_less_than_one_conversation_is_refused(load):
    """Seen to fail when the data set was in no epoch, and nobody told."""
    rows = random_rows(30), random_rows(30, seed=1)
    with pytest.raises(ValueError, match=r"leave \S*0.jsonl less than one conversation .* 60"):
        load(*rows, size=0, weights=(1e-6, 1.0))
    assert load(*rows, size=0, weights=(1.0, 59.0)).mixture.places == [1, 59]


def test_a_selection_numbers_conversations_through(load):
    """Whichever data set they come from."""
    data = load(random_rows(6), random_rows(8, seed=1), size=0)
    assert len(data.train) == 14 and data.mixture.sizes == (6, 8)
    for number in range(14):
        example = data.train[number]
        assert len(example.tokens) == data.train.lengths[number]
        assert np.asarray(example.is_target).sum() == data.train.target_counts[number]


def test_its_hash_tells_data_cut_or_ordered_otherwise(load):
    """Seen to fail when only the texts were hashed."""
    rows = random_rows(30)
    assert load(rows).sha256 == load(rows).sha256
    others = load(rows[::-1]), load(rows, max_length=250), load(rows, size=2), load(rows[1:])
    assert len({load(rows).sha256, *(other.sha256 for other in others)}) == 5


def test_what_was_read_can_be_written_as_json(load):
    data = load(random_rows(20))
    assert json.loads(json.dumps(data.as_dict()))["train"] == len(data.train)
