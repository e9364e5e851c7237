"""Where documents and adapters are kept: one protocol, several tiers."""
