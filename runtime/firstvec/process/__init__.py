"""This process: its threads, and what happens to them at exit, at a fork and after Ctrl-C."""
