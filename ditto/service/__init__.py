"""The services behind the processes. `parties/` holds only their mains."""
