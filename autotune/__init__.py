"""The search for a good kernel configuration: what may be tried, how it is timed, what is kept."""

if __name__ != "patterncc.autotune":
    raise ImportError("import this package as patterncc.autotune")
