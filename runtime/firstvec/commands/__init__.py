"""The command line. `table` has a row for each command, and each command has a function in a file of this room."""
