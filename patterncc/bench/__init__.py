"""`patterncc bench`: attention under patterns timed beside installed peers, each in a process of
its own, and every result judged before its time counts.
"""
