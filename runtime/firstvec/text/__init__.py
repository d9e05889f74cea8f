"""Text → token ids."""
