# LaCache: a ladder of kept keys through the layers, compacted again and again.
# lifetime: for how many positions a key is seen, `patterncc.selection.lacache` computes it with `recent` and `reach`, the
# least of them and the most of any but a pinned key. docs/patterns.md says why this is the recurrence.
# Source: arXiv:2507.14204, GATECH-EIC/LaCache.
pattern lacache(capacity = 256, span = 16, overlap = 0, sinks = 4, lifetime: int[token], recent,
        reach):
    let step = span - overlap
    let slots = 1 + (layers - span + step - 1) // step
    let kept = min((span + step - 1) // step, slots)
    let freed = slots - kept
    let rungs = (capacity + freed // 2 - sinks - layers) // kept
    let start = sinks + kept * rungs
    let place = if k < start then k else start + (k - start) % (rungs * freed)
    let lived = lifetime[layer % (freed + 1) * (sinks + slots * rungs) + place]
    causal and (q - k < recent or (k < sinks + kept or q - k < reach) and q - k < lived)
