"""The shortest script by which transformers + peft answer one question; see benchmarks/startup.py.

Nothing of this project is imported.
"""

from __future__ import annotations

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

prompt, folder, adapter, dtype, count = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
model = PeftModel.from_pretrained(model, adapter).eval()
ids = tokenizer.apply_chat_template(
    [{"role": "user", "content": prompt}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
)
streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
with torch.inference_mode():
    model.generate(
        **ids,
        streamer=streamer,
        do_sample=False,
        temperature=None,
        top_p=None,
        max_new_tokens=int(count),
        pad_token_id=tokenizer.eos_token_id,
    )
