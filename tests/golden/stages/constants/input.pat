# The same with numbers written into the text: sweeps that cannot run are gone.
causal and (window(4096) or sinks(4))
