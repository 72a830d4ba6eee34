# The shortest useful program: one expression, made of patterns of the library.
causal and (window(1024) or sinks(4))
