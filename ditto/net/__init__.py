"""What crosses a network: certificates and configuration, transport, the peer link, framing, emulation, metrics."""
