r"""Completion of the command line: `sdediff completion bash|zsh|fish` prints a script made from the parsers.

    bash    sdediff completion bash > ~/.local/share/bash-completion/completions/sdediff
    zsh     source <(sdediff completion zsh)                        # in ~/.zshrc
    fish    sdediff completion fish > ~/.config/fish/completions/sdediff.fish

What follows an option of known values is one of them, else a file; elsewhere a word that begins with a dash is an option.
"""
from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence

from .contracts import choice

SHELLS = ("bash", "zsh", "fish")


def values() -> dict[str, Sequence[str]]:
    """The words that may follow an option."""
    from .grids import GRIDS
    from .inverse import GUIDANCES
    from .likelihood import DIVERGENCES
    from .recipes import methods
    from .score import PREDICTS
    from .sde import PROCESSES
    from .targets import TOYS
    from .tuning import WHAT
    known = ["auto", "tuned", *methods()]
    return {"--method": known, "--methods": known, "--data": [*TOYS, "digits", "mnist"], "--device": ["cpu", "cuda"],
            "--process": list(PROCESSES), "--grid": list(GRIDS), "--grids": ["own", *GRIDS], "--predicts": PREDICTS,
            "--divergence": DIVERGENCES, "--posterior": [*GUIDANCES, *methods(observing=True)], "--what": WHAT,
            "--targets": ["gaussian", "mixture", *TOYS]}


def script(shell: str, parsers: Mapping[str, argparse.ArgumentParser], about: Mapping[str, str]) -> str:
    """The script for a shell; ``about``: what each command does."""
    choice("shell", shell, SHELLS)
    options = {name: {flag: action.help or "" for action in parser._actions for flag in action.option_strings if action.help
                      != argparse.SUPPRESS} for name, parser in parsers.items()}
    return _fish(options, about) if shell == "fish" else _bash(options, zsh=shell == "zsh")


def _bash(options: Mapping[str, Mapping[str, str]], zsh: bool) -> str:
    of_command = "\n".join(f"        {name}) words={shlex.quote(' '.join(flags))} ;;" for name, flags in options.items())
    of_option = "\n".join(f"        {flag}) words={shlex.quote(' '.join(words))} ;;" for flag, words in values().items())
    head = "#compdef sdediff\nautoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    return f"""{head}_sdediff() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words="" option="" i
    if (( COMP_CWORD == 1 )); then
        words={shlex.quote(" ".join([*options, "--help", "--version"]))}
    elif [[ "$current" == -* ]]; then
        case "${{COMP_WORDS[1]}}" in
{of_command}
        esac
    else
        for (( i = 2; i < COMP_CWORD; i++ )); do
            [[ "${{COMP_WORDS[i]}}" == --* ]] && option="${{COMP_WORDS[i]}}"
        done
        case "${{COMP_WORDS[1]}} $option" in
        "methods ") words={shlex.quote(" ".join(values()["--method"][2:]))} ;;
        "completion ") words="{' '.join(SHELLS)}" ;;
        esac
        case "$option" in
{of_option}
        esac
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$current") )
}}
complete -o default -o bashdefault -F _sdediff sdediff
"""


def _fish(options: Mapping[str, Mapping[str, str]], about: Mapping[str, str]) -> str:
    first = lambda text: shlex.quote(" ".join(text.split()).partition(". ")[0][:80])
    lines = [f"complete -c sdediff -n __fish_use_subcommand -a {name} -d {first(text)}" for name, text in about.items()]
    known = values()
    for name, flags in options.items():
        seen = f"complete -c sdediff -n '__fish_seen_subcommand_from {name}'"
        for flag, text in flags.items():
            kind = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            words = f" -x -a {shlex.quote(' '.join(known[flag]))}" if flag in known else ""
            lines.append(f"{seen} {kind}{words} -d {first(text)}")
    lines.append(f"complete -c sdediff -n '__fish_seen_subcommand_from completion' -f -a '{' '.join(SHELLS)}'")
    return "\n".join(lines) + "\n"
