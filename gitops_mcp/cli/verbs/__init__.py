"""The verbs of the command line, one file each: its options, its work, its exit code."""
