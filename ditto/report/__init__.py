"""What an inference cost, for people: the page, its timeline, predictions, presets side by side."""
