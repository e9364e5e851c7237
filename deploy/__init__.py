"""How the service runs on other people's machinery: manifests beside code, a folder each."""
