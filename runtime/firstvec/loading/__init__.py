"""One load: from a name to a provider, and the session that the provider then uses."""
