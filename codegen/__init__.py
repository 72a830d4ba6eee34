"""From a pattern to its relation, its block program, the kernel's source and a compiled kernel."""

if __name__ != "patterncc.codegen":
    raise ImportError("import this package as patterncc.codegen")
