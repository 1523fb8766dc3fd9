"""How good a model's answers are, in floats, by the plain interpreter and on shares: labelled texts, or plain text."""
