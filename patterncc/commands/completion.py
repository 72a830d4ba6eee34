"""`patterncc completion`: scripts that teach a shell the command line, made from its own parser."""

import argparse
import re
from dataclasses import dataclass

from patterncc.commands.arguments import build_parser

_WORDS_FOR_FILES = ("pattern", "other", "files", "output")


@dataclass(frozen=True, slots=True)
class _Option:
    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    help: str
    options: tuple[_Option, ...]
    words: tuple[str, ...]  # choices of its positional arguments
    files: bool


def run(args: argparse.Namespace) -> int:
    """Prints the script of a shell."""
    scripts = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    print(scripts[args.shell](_commands()), end="")
    return 0


def _commands() -> list[_Command]:
    parser = build_parser()
    choices = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in choices._choices_actions}
    commands = []
    for name, command in choices.choices.items():
        options: list[_Option] = []
        words: list[str] = []
        files = False
        for action in command._actions:
            values = tuple(map(str, action.choices or ()))
            if action.option_strings:
                takes_value = action.nargs != 0
                text = _words(action.help or "")
                options.append(_Option(tuple(action.option_strings), text, takes_value, values))
            else:
                words += values
                files = files or action.dest in _WORDS_FOR_FILES
        commands.append(_Command(name, helps[name], tuple(options), tuple(words), files))
    return commands


def _words(text: str) -> str:
    """A help text without what a shell would read as its own."""
    return re.sub(r"[^\w\s.,;/()=-]", "", text)


def _bash(commands: list[_Command]) -> str:
    names = " ".join(command.name for command in commands)
    cases = []
    for command in commands:
        words = [name for option in command.options for name in option.names]
        words += command.words
        files = ' COMPREPLY+=($(compgen -f -- "$cur"))' if command.files else ""
        match = f'COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$cur"));'
        cases.append(f"        {command.name}) {match}{files} ;;")
    values = {
        name: " ".join(option.choices)
        for command in commands
        for option in command.options
        if option.choices
        for name in option.names
    }
    choices = [
        f'        {name}) COMPREPLY=($(compgen -W "{words}" -- "$cur")); return ;;'
        for name, words in values.items()
    ]
    return "\n".join(
        [
            "# Completion of patterncc for bash:  source <(patterncc completion bash)",
            "_patterncc() {",
            '    local cur="${COMP_WORDS[COMP_CWORD]}" prev="${COMP_WORDS[COMP_CWORD - 1]}"',
            "    COMPREPLY=()",
            '    case "$prev" in',
            *choices,
            '        -o|--output) COMPREPLY=($(compgen -f -- "$cur")); return ;;',
            "    esac",
            "    if ((COMP_CWORD == 1)); then",
            f'        COMPREPLY=($(compgen -W "{names} --help --version" -- "$cur"))',
            "        return",
            "    fi",
            '    case "${COMP_WORDS[1]}" in',
            *cases,
            "    esac",
            "}",
            "complete -o filenames -F _patterncc patterncc",
            "",
        ]
    )


def _zsh(commands: list[_Command]) -> str:
    lines = [
        "#compdef patterncc",
        "# Completion of patterncc for zsh:  source <(patterncc completion zsh)",
        "_patterncc() {",
        "    local -a commands",
        "    commands=(",
        *(f"        '{command.name}:{_words(command.help)}'" for command in commands),
        "    )",
        "    if ((CURRENT == 2)); then",
        "        _describe command commands",
        "        return",
        "    fi",
        "    local chosen=$words[2]",
        "    shift words",
        "    ((CURRENT--))",
        "    case $chosen in",
    ]
    for command in commands:
        specs = []
        for option in command.options:
            value = ""
            if option.choices:
                value = f":value:({' '.join(option.choices)})"
            elif option.takes_value:
                value = ":value:_files" if "--output" in option.names else ":value:"
            specs += [f"'{name}[{option.help}]{value}'" for name in option.names]
        if command.words:
            specs.append(f"'*:word:({' '.join(command.words)})'")
        elif command.files:
            specs.append("'*:pattern:_files'")
        joined = " \\\n                ".join(specs)
        lines += [
            f"        {command.name})",
            f"            _arguments \\\n                {joined}",
            "            ;;",
        ]
    lines += ["    esac", "}", "compdef _patterncc patterncc", ""]
    return "\n".join(lines)


def _fish(commands: list[_Command]) -> str:
    lines = [
        "# Completion of patterncc for fish:  patterncc completion fish | source",
        "complete -c patterncc -n __fish_use_subcommand -f",
    ]
    for command in commands:
        lines.append(
            f"complete -c patterncc -n __fish_use_subcommand -a {command.name}"
            f" -d '{_words(command.help)}'"
        )
        used = f"-n '__fish_seen_subcommand_from {command.name}'"
        if command.words:
            lines.append(f"complete -c patterncc {used} -f -a '{' '.join(command.words)}'")
        for option in command.options:
            parts = [
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
                for name in option.names
            ]
            value = f" -x -a '{' '.join(option.choices)}'" if option.choices else ""
            if option.takes_value and not option.choices:
                value = " -r"
            names = " ".join(parts)
            lines.append(f"complete -c patterncc {used} {names}{value} -d '{option.help}'")
    return "\n".join([*lines, ""])
