"""Serves documents and questions over HTTP; the method itself is in `perk`."""
