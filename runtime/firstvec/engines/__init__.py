"""The engines: `table` has a row for each engine and each instruction set, and each engine has a file."""
