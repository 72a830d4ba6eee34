# Look-alikes, and characters that nothing looks like.
let near = k ≤ q ∧ q − k < ６４
let сlose = 0.5 < q
near and $$ ¿
