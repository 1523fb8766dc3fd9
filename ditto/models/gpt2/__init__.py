"""GPT-2 (Radford et al. 2019): text generation, token by token."""

from ditto.models.gpt2.gpt2 import GPT2

CLASSES = {"GPT2LMHeadModel": GPT2()}
