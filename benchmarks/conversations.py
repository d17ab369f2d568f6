"""The conversations that benchmarks give to both sides, and how others are told who wrote what.

A child process writes them, since a benchmark that measures memory imports nothing heavy itself.

    python -m benchmarks.conversations DATA FILE COUNT
"""

from __future__ import annotations

import sys
from itertools import count, islice
from pathlib import Path

# A template with marks around what an assistant writes, its end token included, for each control
# token by which a vocabulary is told. Both write what the model's own template does.
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\\n' }}{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' "
    "+ message['role'] + '<|end_header_id|>\\n\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
)


def template_for(model: str) -> dict[str, str]:
    """The settings by which TRL writes conversations as we do for the model in a folder."""
    vocabulary = (Path(model) / "tokenizer.json").read_text(encoding="utf-8")
    if "<|im_start|>" in vocabulary:
        return {"template": CHATML, "pad": "<|im_end|>"}
    return {"template": LLAMA3, "pad": "<|eot_id|>"}


def write_rows(source: str, file: Path, wanted: int) -> None:
    """Writes so many different conversations: those of a data set, and variants of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data.conversations import Flaw, conversation_of
    from data.rows import read_rows
    from data.sources import find_source

    def conversations():
        for data_file in find_source(source).files:
            for rows in read_rows(data_file):
                for row in rows:
                    try:
                        yield [(m.role, m.content) for m in conversation_of(row)]
                    except Flaw:
                        pass

    def varied():
        for number in count():
            ending = f" (variant {number})" if number else ""
            for turns in conversations():
                first = next(place for place, (role, _) in enumerate(turns) if role == "user")
                yield [
                    {"role": role, "content": text + ending * (place == first)}
                    for place, (role, text) in enumerate(turns)
                ]

    rows = [{"messages": turns} for turns in islice(varied(), wanted)]
    pq.write_table(pa.Table.from_pylist(rows), file)


if __name__ == "__main__":
    write_rows(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
