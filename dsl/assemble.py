"""Builds values while a program is checked: the rules about sizes, constants, divisors, products.

Works on values and the syntax node to blame; it does not look at names and does not walk syntax.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from patterncc.dsl.build import floordiv, modulo, multiply, substitute
from patterncc.dsl.limits import MAX_CONSTANT, MAX_DEPTH, MAX_NODES, MAX_WORK
from patterncc.dsl.linear import (
    LENGTHS,
    folded_constants,
    implies_causal,
    is_position,
    is_specialised,
    reads_outer_position,
    reads_position,
    reads_table,
)
from patterncc.dsl.mask import (
    Const,
    Cover,
    Expr,
    K,
    Q,
    Var,
    children,
    parameters,
    variables,
    walk,
)
from patterncc.dsl.syntax import Expression
from patterncc.dsl.values import Frame, GiveUpError, Report, Value

_STEP = 32  # what a step costs by itself, in nodes
_SUBSTITUTION = 4  # what a node costs that is built again
_MAX_EXCERPT = 60  # characters of a library pattern that a note shows
_TOO_LARGE_HINT = f"numbers go from -{MAX_CONSTANT} to {MAX_CONSTANT}"


class Assembler:
    """Builds values and reports what must not be built.

    Attributes:
        report: Where mistakes go.
        fixed: Names of parameters seen to divide, to be a modulus, to multiply a position or to
            size a block.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.fixed: set[str] = set()
        self._work = 0

    # ----------------------------------------------------------------------------------- mistakes

    def fail(
        self,
        code: str,
        message: str,
        node: Expression,
        frame: Frame,
        hint: str | None = None,
        whole: Expression | None = None,
    ) -> None:
        """Reports a mistake at a node, or at the call that brought it about.

        Args:
            code, message, hint: As of a diagnostic.
            node: What is wrong.
            frame: The definition that the node is part of.
            whole: What to show of a called pattern; the node itself if None.
        """
        notes: tuple[str, ...] = ()
        if frame.site is not None:
            span = (whole or node).span
            text = " ".join(frame.module.source.excerpt(span).split())
            if len(text) > _MAX_EXCERPT:
                text = text[:_MAX_EXCERPT] + "..."
            notes = (f"`{frame.name}` has `{text}`",)
        self.report.add(code, message, frame.place(node), hint, notes)

    def give_up(
        self, code: str, message: str, node: Expression, frame: Frame, hint: str | None = None
    ) -> NoReturn:
        """Reports that the program is too large to go on.

        Raises:
            GiveUpError: Always.
        """
        self.fail(code, message, node, frame, hint)
        raise GiveUpError

    def too_long(self, node: Expression, frame: Frame) -> NoReturn:
        """Gives up because of too many nodes."""
        self.give_up(
            "too-long",
            f"with its calls and lets written out, this has more than {MAX_NODES} parts",
            node,
            frame,
            "long lists belong into a table parameter",
        )

    def too_deep(self, node: Expression, frame: Frame) -> NoReturn:
        """Gives up because of too many levels."""
        self.give_up(
            "too-deep",
            f"with its calls and lets written out, this is nested more than {MAX_DEPTH} deep",
            node,
            frame,
        )

    def too_large(self, node: Expression, frame: Frame) -> None:
        """Reports a constant that folding made."""
        message = "this gives a constant too large"
        self.fail("constant-too-large", message, node, frame, _TOO_LARGE_HINT)

    # ----------------------------------------------------------------------------------- building

    def join(
        self,
        make: Callable[..., Expr],
        parts: Sequence[Value | None],
        node: Expression,
        frame: Frame,
        copies: int = 1,
    ) -> Value | None:
        """`make(*parts)` as a value, its size and its constants checked; None if a part is wrong.

        Args:
            make: Builds the expression.
            parts: What it is made of.
            node, frame: The place to blame.
            copies: How often the largest part may stand in the result, and the others twice.
        """
        sound = [part for part in parts if part is not None]
        if len(sound) < len(parts):
            return None
        largest = max(part.size for part in sound)
        size = len(parts) + copies * largest
        size += min(copies, 2) * (sum(part.size for part in sound) - largest)
        depth = 1 + min(copies, 2) + max(part.depth for part in sound)
        if size > 4 * MAX_NODES:
            self.too_long(node, frame)
        self.spend(size, node, frame)
        return self.checked(Value(make(*(part.expr for part in sound)), size, depth), node, frame)

    def spend(self, size: int, node: Expression, frame: Frame) -> None:
        """Counts the nodes that are about to be built."""
        self._work += _STEP + size
        if self._work > MAX_WORK:
            message = "writing out the calls and lets of this program takes too many steps"
            self.give_up("too-long", message, node, frame)

    def checked(self, value: Value, node: Expression, frame: Frame) -> Value | None:
        """The value, if neither it nor a constant that building it folded is too large."""
        if value.size > MAX_NODES or value.depth > MAX_DEPTH:
            value = measured(value.expr)  # the bounds may be far too high: building folds
            self.spend(value.size, node, frame)
            if value.size > MAX_NODES:
                self.too_long(node, frame)
            if value.depth > MAX_DEPTH:
                self.too_deep(node, frame)
        if any(abs(constant) > MAX_CONSTANT for constant in folded_constants(value.expr)):
            self.too_large(node, frame)
            return None
        return value

    def number(self, digits: str, node: Expression, frame: Frame) -> Value | None:
        """Digits as a value."""
        significant = digits.lstrip("0") or "0"
        if len(significant) > len(str(MAX_CONSTANT)) or int(significant) > MAX_CONSTANT:
            shown = digits if len(digits) <= 24 else f"{digits[:20]}..."
            self.fail("constant-too-large", f"{shown} is too large", node, frame, _TOO_LARGE_HINT)
            return None
        return Value(Const(int(significant)))

    # ----------------------------------------------------------------------------------- products

    def product(self, factors: Sequence[Value], node: Expression, frame: Frame) -> Value | None:
        """The product: one factor may move with the position, the others are then compiled in."""
        moving = [factor for factor in factors if reads_position(factor.expr)]
        if len(moving) > 1:
            self.fail(
                "not-linear",
                "two factors depend on a position",
                node,
                frame,
                "a position may be multiplied by a constant or a fixed parameter",
            )
            return None
        for factor in factors if moving else ():
            if factor is moving[0]:
                continue
            if not is_specialised(factor.expr):
                self.fail(
                    "not-linear",
                    f"a position is multiplied by {_what_varies(factor.expr)}",
                    node,
                    frame,
                    "a position may be multiplied by a constant, a parameter, "
                    "`heads`, `kv_heads` or `layers`",
                )
                return None
            self.fixed |= parameters(factor.expr)
        return self.join(multiply, factors, node, frame)

    def quotient(
        self,
        op: str,
        left: Value,
        right: Value,
        divisor: Expression,
        node: Expression,
        frame: Frame,
    ) -> Value | None:
        """`left // right` or `left % right`: the divisor is positive and compiled in."""
        expr = right.expr
        lengths = sorted(variables(expr) & LENGTHS)
        if lengths:
            code = "length-divisor"
            message = f"`{lengths[0]}` divides, and a new length must not need a new kernel"
            hint = "divide by a parameter, or by `heads`, `kv_heads` or `layers`"
        elif not is_specialised(expr):
            code = "varying-divisor"
            message = f"the divisor is {_what_varies(expr)}"
            hint = "choose between quotients: `if ... then a // 8 else a // 16`"
        elif isinstance(expr, Const) and expr.value <= 0:
            code = "not-positive"
            message = f"`{op}` by {expr.value}: a divisor is at least 1"
            hint = None
        else:
            self.fixed |= parameters(expr)
            make = floordiv if op == "//" else modulo
            return self.join(make, (left, right), node, frame)
        self.fail(code, message, divisor, frame, hint, whole=node)
        return None

    # ----------------------------------------------------------------------------------- patterns

    def moved(
        self,
        pattern: Value | None,
        q: Value | None,
        k: Value | None,
        node: Expression,
        frame: Frame,
    ) -> Value | None:
        """`pattern at (q, k)`."""
        if pattern is None or q is None or k is None:
            return None
        self.spend(pattern.size, node, frame)
        size = 0
        for inner in walk(pattern.expr):
            size += q.size if inner == Q else k.size if inner == K else 1
        if size > 4 * MAX_NODES:
            self.too_long(node, frame)
        return self.replaced(pattern, {Q: q.expr, K: k.expr}, node, frame)

    def replaced(
        self, value: Value, replace: Mapping[Any, Any], node: Expression, frame: Frame
    ) -> Value | None:
        """The value with variables replaced, everything about it checked again."""
        self._work += _SUBSTITUTION * value.size
        expr = substitute(value.expr, replace)
        result = measured(expr)
        self.spend(_SUBSTITUTION * result.size, node, frame)
        if any(
            abs(constant) > MAX_CONSTANT
            for part in walk(expr)
            for constant in folded_constants(part)
        ):
            self.too_large(node, frame)
            return None
        return self.checked(result, node, frame)

    def covered(
        self,
        sizes: tuple[tuple[Value, Expression], tuple[Value, Expression]],
        body: Value,
        node: Expression,
        frame: Frame,
    ) -> Value | None:
        """`cover(block_q, block_k, body)`."""
        blocks = []
        for value, place in sizes:
            block = self._block_size(value, place, node, frame)
            if block is None:
                return None
            blocks.append(block)
        if reads_outer_position(body.expr):
            self.fail(
                "cover-argument",
                "the covered pattern reads a position of outside `cover`",
                node,
                frame,
                "an argument of a pattern that uses `cover` must not depend on `q` or `k`",
            )
            return None
        causal = implies_causal(body.expr)  # type: ignore[arg-type]
        return self.join(
            lambda inner: Cover(blocks[0], blocks[1], inner, causal), (body,), node, frame
        )

    def _block_size(
        self, value: Value, place: Expression, node: Expression, frame: Frame
    ) -> int | None:
        expr = value.expr
        if isinstance(expr, Const) and expr.value > 0:
            return expr.value
        if isinstance(expr, Const):
            message = f"a block of {expr.value}: a size is at least 1"
            self.fail("not-positive", message, place, frame, whole=node)
            return None
        if variables(expr) or reads_table(expr):
            message = "the size of a block is no constant"
            hint = "give a number, or a parameter"
            self.fail("not-constant", message, place, frame, hint, whole=node)
            return None
        # Only parameters: they are fixed by this, and have values when the pattern is built.
        self.fixed |= parameters(expr)
        return 1


def measured(expr: Expr) -> Value:
    """The expression with its exact size and depth."""
    size = depth = 0
    stack = [(expr, 1)]
    while stack:
        node, level = stack.pop()
        size += 1
        depth = max(depth, level)
        stack.extend((inner, level + 1) for inner in children(node))
    return Value(expr, size, depth)


def _what_varies(expr: Expr) -> str:
    """Why an expression is not known when a kernel is compiled."""
    names = sorted(variables(expr))
    positions = [name for name in names if is_position(name)]
    if isinstance(expr, Var) and not positions:
        return f"`{expr.name}`, which varies at run time"
    if positions:
        return "different from position to position"
    if reads_table(expr):
        return "an entry of a table"
    return "different from " + " to ".join([names[0]] * 2) if names else "not constant"
