"""The main line: run, dry run, closed loop, recover, resume."""
