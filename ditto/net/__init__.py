"""What crosses a network: certificates, configuration, transport, messages, peer link, framing, emulation, metrics."""
