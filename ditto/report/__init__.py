"""What an inference cost, for people: the page and its timeline, the trace, the cost model, presets side by side."""
