"""Any config.json at all is read as transformers reads it, or refused in one line.

Seen to fail when overflow was not caught, and when `rope_parameters` went before `rope_scaling`.
"""

from __future__ import annotations

import pytest
from conftest import llama3_rope, tiny_config
from test_config import assert_read_as_by_transformers

from model.config import LlamaConfig

hypothesis = pytest.importorskip("hypothesis")
transformers = pytest.importorskip("transformers")
st = hypothesis.strategies


def ropes(values: st.SearchStrategy) -> st.SearchStrategy:
    names = [*llama3_rope(8.0), "type", "\n"]
    return st.dictionaries(st.sampled_from(names), values) | st.dictionaries(
        st.sampled_from(names), values
    ).map(lambda changes: llama3_rope(8.0) | changes)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 60)
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, -(10**400), 1e308, 5e-324])
    | st.sampled_from(["llama", "llama3", "default", "silu", "bfloat16", "\n", "10"]),
    lambda inner: st.lists(inner, max_size=3) | ropes(inner),
    max_leaves=8,
)
FIELDS = [*tiny_config(), "rope_scaling", "rope_theta", "torch_dtype", "hidden_act"]


@hypothesis.settings(max_examples=600, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2),
    st.sets(st.sampled_from(FIELDS), max_size=2),
)
@hypothesis.example({"rope_theta": None}, {"rope_parameters"})
def test_any_other_config_is_read_as_by_transformers_or_refused_in_one_line(changes, absent):
    raw = {name: v for name, v in tiny_config().items() if name not in absent} | changes
    try:
        config = LlamaConfig.from_dict(raw)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    try:
        transformers.LlamaConfig(**raw)
    except Exception:
        return  # ours is stricter in general, and theirs in a few places
    assert_read_as_by_transformers(config, raw)
