# One mistake in each piece; c is sound, and so is what uses it.
pattern a(n): k < n <
pattern b():
    let x = * 3
    let y = 3 4
    let z = 4k
    x < y + z
pattern c(): k < q
pattern d(x y): c
pattern e():
    causal
    and window(3)
pattern f(): causal and if head == 0 then c else causal
