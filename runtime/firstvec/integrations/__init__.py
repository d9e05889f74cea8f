"""Adapters: one small file for each framework. docs/integrations.md has an example of each."""
