# Operators of other languages. Each is reported, and the rest of the text is still checked.
let near = q - k < 8 && k <= q
let far = (q - k) / 64 == 3 || !near
near | far & windw(3) and 2 ** 3 <> q
