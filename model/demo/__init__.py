"""A tiny Llama, pre-trained from scratch on a little world, and the code that makes it.

names.py       who may be met             stories.py       documents to pre-train on
world.py       what is true               vocabulary.py    the tokenizer
smalltalk.py   what else people say       build.py         pre-training
talks.py       questions and answers      conversations.py chats to fine-tune on
"""
