# A ladder through the layers: sinks, a recent window, and one rung of keys in every period, shifted from layer to layer,
# so that eight layers together keep everything.
pattern rungs(sinks = 4, recent = 512, rung = 128, period = 8):
    let kept = (k // rung + layer) % period == 0
    causal and (k < sinks or q - k < recent or kept)
