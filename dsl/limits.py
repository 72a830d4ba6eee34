"""How large a program may be: every recursion stays shallow, every check well under a second."""

MAX_TEXT = 1 << 20  # characters of a text
MAX_TOKENS = 10_000  # tokens of a text, line ends and comments among them
MAX_NAME = 100  # characters of a name
MAX_DEPTH = 100  # levels of nesting, in the text and after calls are written out
MAX_NODES = 5_000  # nodes of an expression after calls are written out
MAX_WORK = 300_000  # nodes handled in all while a program is checked
MAX_DIAGNOSTICS = 50  # mistakes that are reported of one text
MAX_CONSTANT = 1 << 30  # absolute value of a constant, a table's number or a run-time number
MAX_TERM = 500  # nodes of a score term after ready terms and lets are written out
