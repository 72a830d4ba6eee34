# A condition on the layer alone guards whole sweeps.
if layer % 6 == 5 then causal else window(1024)
