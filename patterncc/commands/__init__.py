"""The commands of `patterncc`, one a module: `run(args)` does it and returns the exit code.

What their arguments are is in `patterncc.cli`, which imports a command only to run it.
"""
