"""The command line: one file a command; `session` and `tables` hold what they share."""
