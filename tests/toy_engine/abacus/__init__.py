"""An engine for the tests: BERT in numpy, one text at a time."""

VERSION = "1.5"
