"""Inputs that nobody meant to send: every gRPC method, every stream and every file that is read.

A target (`fuzz.target`) makes an input of any bytes, by changing a valid one, and gives it to the product. What may
come back is an answer or an error that a user can meet (`ditto.errors`); all else is a finding. `make fuzz` looks for
findings; `tests/corpus/TARGET/` keeps the inputs that once were one, for `tests/test_corpus.py`.
"""
