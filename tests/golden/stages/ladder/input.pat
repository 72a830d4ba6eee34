# A progression whose phase is a run-time number, the layer.
ladder(64, 1024, 128, 8)
