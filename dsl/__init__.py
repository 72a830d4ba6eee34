"""The pattern language: text in, checked and typed patterns out. Knows no device and no tensor."""

if __name__ != "patterncc.dsl":
    raise ImportError("import this package as patterncc.dsl")
