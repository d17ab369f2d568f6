"""Known bugs of training programs, each as one change of this one, and the test that notices it.

Every row is a bug that others had: what it does, where it was discussed (owner/repository#number on
GitHub; nothing where no thread is known), the file, the text in it and what the bug makes of that
text, and the test that must fail. `test_mutants.py` puts them in, one at a time:
`python -m pytest -m mutation`.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One bug; `old` stands in `file` exactly once, and `test` is a pytest address below tests/."""

    bug: str
    source: str
    file: str
    old: str
    new: str
    test: str


NUMBERS = [
    Mutant(
        "each micro-batch's mean counts alike, however few targets it has",
        "huggingface/transformers#34191",
        "train.py",
        "batch.to(world.device)) / num_targets",
        "batch.to(world.device)) / len(batch.targets)",
        "test_step_gradients.py::test_every_partition_gives_the_gradient_of_the_padded_batch",
    ),
    Mutant(
        "the loss is divided by the number of micro-batches once more",
        "huggingface/transformers#35438",
        "train.py",
        "batch.to(world.device)) / num_targets",
        "batch.to(world.device)) / num_targets / len(batches)",
        "test_step_gradients.py::test_every_partition_gives_the_gradient_of_the_padded_batch",
    ),
    Mutant(
        "each process divides by its own number of targets",
        "pytorch/torchtitan#2206",
        "train.py",
        "world.sum(counts).clamp(min=1)",
        "counts.clamp(min=1)",
        "test_distributed.py::test_several_processes_end_with_the_weights_and_the_log_of_one",
    ),
    Mutant(
        "a step without any target divides by zero",
        "huggingface/trl#6668",
        "train.py",
        "return world.sum(loss), nn",
        "return world.sum(loss * num_targets) / counts, nn",
        "test_step_gradients.py::test_a_step_without_any_target_changes_nothing",
    ),
    Mutant(
        "A has the base's dtype, in which small updates round to nothing",
        "pytorch/ao#1124",
        "lora/layer.py",
        "base.in_features, rank, bias=False, device=device, dtype=torch.float32",
        "base.in_features, rank, bias=False, device=device, dtype=base.weight.dtype",
        "test_lora.py::test_a_and_b_are_float32_whatever_the_frozen_layer_is",
    ),
    Mutant(
        "a step that the loss scaler skipped counts as taken, and the rate goes on",
        "Lightning-AI/pytorch-lightning#18828",
        "train.py",
        "run.scaler.get_scale() >= 1:",
        "False:",
        "test_loss_scaling.py::test_a_skipped_step_is_taken_again_and_advances_nothing",
    ),
    Mutant(
        "gradients that are not finite reach the weights by way of clipping",
        "pytorch/pytorch#46849",
        "train.py",
        "if math.isfinite(norm) or run.scaler.is_enabled():",
        "if True:",
        "test_loss_scaling.py::test_gradients_that_are_not_finite_never_reach_the_weights",
    ),
    Mutant(
        "a run whose gradients are never finite goes on for ever",
        "kyutai-labs/pocket-tts#262",
        "train.py",
        "if broken == MOST_BROKEN_STEPS:",
        "if False:",
        "test_loss_scaling.py::test_ten_such_steps_in_a_row_end_the_run",
    ),
    Mutant(
        "weights that are NaN are saved, and push the good checkpoints out",
        "kyutai-labs/pocket-tts#262",
        "lora/checkpoint.py",
        "if not all(map(math.isfinite, tensor.aminmax())):",
        "if False:",
        "test_checkpoint.py::test_a_state_that_is_not_finite_is_not_saved",
    ),
    Mutant(
        "the softmax is computed in bfloat16",
        "Modalities/modalities#464",
        "model/loss.py",
        "torch.promote_types(hidden.dtype, torch.float32)",
        "hidden.dtype",
        "test_loss.py::test_loss_and_gradient_are_pytorchs",
    ),
    Mutant(
        "logits exist for all tokens at once",
        "",
        "model/loss.py",
        "range(0, len(targets), CHUNK):\n            chunk = slice(start, start + CHUNK)",
        "[0]:\n            chunk = slice(0, len(hidden))",
        "test_loss.py::test_logits_exist_for_one_chunk_at_a_time",
    ),
    Mutant(
        "RoPE's speeds are rounded to bfloat16",
        "huggingface/transformers#29285",
        "model/rope.py",
        "1.0 / config.rope_theta**exponents",
        "(1.0 / config.rope_theta**exponents).bfloat16().float()",
        "test_rope.py::test_the_table_is_as_exact_as_float32_allows",
    ),
    Mutant(
        "Llama 3.1's scaling of RoPE is dropped",
        "unslothai/unsloth#6197",
        "model/rope.py",
        "return speeds if config.rope_scaling is None else",
        "return speeds if True else",
        "test_model_matches_transformers.py::test_rope_speeds_are_theirs_and_fall_into_three_bands",
    ),
    Mutant(
        "the scaling is always 8, Llama 3.1's",
        "meta-llama/llama-models#241",
        "model/config.py",
        'factor=number(rope, "factor")',
        "factor=8.0",
        "test_config.py::test_llama_3_2_is_scaled_by_32_and_3_1_by_8",
    ),
    Mutant(
        "neighbouring features are turned as a pair, which these files do not mean",
        "pytorch/torchtitan#335",
        "model/rope.py",
        "exact = x.to(",
        "exact = x.unflatten(-1, (-1, 2)).mT.flatten(-2).to(",
        "test_model_matches_transformers.py::test_logits_and_gradients_are_theirs",
    ),
    Mutant(
        "targets are not shifted: a token is to predict itself",
        "huggingface/transformers#47394",
        "data/batches.py",
        "example.tokens[places + 1]",
        "example.tokens[places]",
        "test_batches.py::test_a_micro_batch_has_each_target_behind_what_stands_before_it",
    ),
    Mutant(
        "padding is counted as text",
        "huggingface/transformers#26072",
        "model/llama.py",
        "self(tokens[attention_mask], Packed(lengths))",
        "self(tokens.flatten(), Packed([tokens.shape[1]] * len(tokens)))[attention_mask.flatten()]",
        "test_packing_and_cache.py::test_padding_changes_nothing_wherever_and_whatever_it_is",
    ),
    Mutant(
        "packed conversations see each other, although positions start anew",
        "huggingface/nanoVLM#204",
        "model/attention.py",
        "x.split(self.lengths) for x in",
        "x.split(len(x)) for x in",
        "test_packing_and_cache.py::test_packed_documents_score_as_each_alone",
    ),
    Mutant(
        "positions go on from one packed conversation to the next",
        "huggingface/trl#805",
        "model/attention.py",
        "torch.cat([torch.arange(length, device=device) for length in self.lengths])",
        "torch.arange(sum(self.lengths), device=device)",
        "test_packing_and_cache.py::test_positions_restart_with_every_document",
    ),
    Mutant(
        "the mask of cached keys is aligned at the wrong corner",
        "",
        "model/attention.py",
        ".tril(S - T)",
        ".tril()",
        "test_packing_and_cache.py::test_a_cache_filled_in_any_chunks_scores_as_one_pass",
    ),
    Mutant(
        "the first step of the warm-up has a rate of 0",
        "",
        "lora/schedule.py",
        "(step + 1) / (config.warmup_steps + 1)",
        "step / (config.warmup_steps + 1)",
        "test_schedule.py::test_the_warm_up_rises_in_a_line_and_wastes_no_step",
    ),
    Mutant(
        "behind the last step the cosine climbs again",
        "ScrollPrize/villa#1495",
        "lora/schedule.py",
        "math.cos(math.pi * min(done, 1.0))",
        "math.cos(math.pi * done)",
        "test_schedule.py::test_behind_the_end_it_stays_at_its_lowest",
    ),
]

TOKENS = [
    Mutant(
        "two BOS: the tokenizer adds one to the template's",
        "OpenRLHF/OpenRLHF#393",
        "data/chat_format.py",
        " and ids[0] != bos_id",
        "",
        "test_chat_format.py::test_there_is_one_bos_and_it_comes_first",
    ),
    Mutant(
        "the end of a turn is not learnt, so that answers never end",
        "unslothai/unsloth#416",
        "data/chat_templates.py",
        'yield control("<|eot_id|>", by_assistant)',
        'yield control("<|eot_id|>")',
        "test_dataset.py::test_every_assistant_turn_is_supervised_to_its_end",
    ),
    Mutant(
        "what the user says is learnt too",
        "huggingface/trl#598",
        "data/chat_templates.py",
        "        yield from llama3_header(role)\n        yield Piece(text, by_assistant)",
        "        yield from llama3_header(role)\n        yield Piece(text, True)",
        "test_chat_mask.py::test_the_ids_under_the_mask_spell_the_answers_and_their_ends",
    ),
    Mutant(
        "texts are not trimmed as the model's template does",
        "meta-pytorch/torchtune#1473",
        "data/chat_templates.py",
        "message.content.strip()) for",
        "message.content) for",
        "test_chat_format.py::test_llama_3_2_trims_each_turn",
    ),
    Mutant(
        "the setting for today's date is ignored",
        "sgl-project/sglang#3296",
        "data/chat_format.py",
        "partial(llama3, date=date)",
        'partial(llama3, date="26 Jul 2024")',
        "test_chat_format.py::test_the_date_is_a_setting",
    ),
    Mutant(
        "rows keep the roles human and gpt",
        "unslothai/unsloth#881",
        "data/conversations.py",
        "return Message(ROLE_OF[speaker.lower()], text)",
        "return Message(speaker, text)",
        "test_conversations.py::test_the_three_shapes_of_a_row_give_the_same_conversation",
    ),
    Mutant(
        "only the first two turns of a conversation are kept",
        "Tencent/AngelSlim#345",
        "data/conversations.py",
        'either(turn, "value", "content")) for turn in turns]',
        'either(turn, "value", "content")) for turn in turns[:2]]',
        "test_conversations.py::test_no_turn_of_a_good_row_is_lost_or_moved",
    ),
    Mutant(
        "half a character is shown as U+FFFD while an answer is written",
        "exo-explore/exo#1691",
        "data/tokenizer.py",
        "return self.utf8.decode(text)",
        'return text.decode("utf-8", errors="replace")',
        "test_streaming.py::test_a_character_appears_with_its_last_byte",
    ),
    Mutant(
        "the last, incomplete character of an answer is lost",
        "replicate/cog-llama-template#75",
        "data/tokenizer.py",
        'self.utf8.decode(b"", final=True)',
        '""',
        "test_streaming.py::test_streamed_ids_that_are_not_valid_utf8_give_what_decode_gives",
    ),
    Mutant(
        "the last conversations of an epoch are dropped",
        "",
        "data/batches.py",
        "math.ceil(mixture.epoch_size / batch_size)",
        "max(1, mixture.epoch_size // batch_size)",
        "test_batches.py::test_an_epoch_has_every_conversation_once",
    ),
]

# Bugs of others that no one line brings here: what is not there, and the test that would notice.
ABSENT = [
    ("all micro-batches wait for one backward pass", "each has its own", "test_placement.py"),
    ("a batch of rows that are all masked", "nothing is padded", "test_packing_and_cache.py"),
    ("recomputation draws other dropout", "it is not reentrant", "test_memory.py"),
    ("autocast and recomputation disagree", "there is no autocast", "test_step_gradients.py"),
    ("answers are found as substrings", "masks are built with the ids", "test_chat_mask.py"),
    ("masks come from a template's blocks", "no template is executed", "test_chat_mask.py"),
    ("the clock gets into prompts", "the date is fixed", "test_chat_format.py"),
    ("generators are not restored", "they follow from seed and step", "test_resume.py"),
    ("the schedule is not restored", "it follows from the step", "test_schedule.py"),
    ("data are skipped one by one", "their order follows from the step", "test_resume.py"),
    ("files are unpickled", "there is no pickle", "test_supply.py"),
    ("a merged head is lost", "the head cannot be adapted", "test_merge.py"),
    ("ranks have unequal steps", "steps are planned for all", "test_distributed.py"),
    ("gradients are synced too early", "they are summed once a step", "test_distributed.py"),
    ("unused parameters hang", "nothing is wrapped", "test_distributed.py"),
    ("samplers repeat an epoch", "the order has the epoch in it", "test_batches.py"),
    ("restarted processes begin anew", "all resume", "test_distributed.py"),
]
