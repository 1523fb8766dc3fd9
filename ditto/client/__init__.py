"""The client's side: share a model, ask on shares, generate text, run a cluster on this machine."""
