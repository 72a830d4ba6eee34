"""The commands of `patterncc`, one a module: `run(args)` does it and returns the exit code.

What their arguments are is in `arguments`; `patterncc.cli` imports a command only to run it.
"""
