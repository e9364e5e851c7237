"""A vLLM server that answers from the adapters in our store."""
