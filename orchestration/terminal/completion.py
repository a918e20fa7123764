"""Tab completion in bash: the script that `PROGRAM --print-completion` prints.

It completes flags, the values of flags that have a choice, and after --resume the sweeps and runs in the storage.
"""

from __future__ import annotations

import sys
from pathlib import Path

from orchestration.config import STORAGE
from orchestration.storage import RUN_FILE, SWEEP_FILE
from orchestration.terminal.flags import Flag, flags_of
from soflow.config import NAMED_SECTIONS
from soflow.config_base import Section
from soflow.objectives.registry import OBJECTIVES

FUNCTION = r"""
declare -gA _soflow_flags _soflow_values
_soflow_complete() {
    local program="" word="${COMP_WORDS[COMP_CWORD]}" storage="STORAGE" flag="" file words given
    COMPREPLY=()
    for given in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$given" in
            =) ;;  # bash separates --flag=value there
            --*) flag="$given" ;;
            *.py) program="${program:-${given##*/}}" ;;
            *) [ "$flag" = --storage ] && storage="${given/#\~/$HOME}" ;;
        esac
    done
    [ -n "$program" ] && [ -n "${_soflow_flags[$program]}" ] || return 0
    if [[ "$word" == --* ]]; then
        COMPREPLY=($(compgen -W "${_soflow_flags[$program]}" -- "$word"))
        return 0
    fi
    words="${_soflow_values[$program $flag]}"
    if [ "$flag" = --resume ]; then
        for file in "$storage"/*/SWEEP "$storage"/*/RUN; do
            [ -e "$file" ] && file="${file%/*}" && words="$words ${file##*/}"
        done
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _soflow_complete python python3
"""


def completion_script(model: type[Section], options: type[Section] | None = None) -> str:
    """Return the script that completes the flags of this program, beside those of other programs.

    Args:
        options: the program's own flags besides the model's.
    """
    program = Path(sys.argv[0]).name
    flags = {flag.name: flag for name in OBJECTIVES.included for flag in flags_of(model, name).values()}
    flags |= {flag.name: flag for flag in flags_of(options).values()} if options else {}
    values = {name: _choices(flag) for name, flag in flags.items()}
    for name, known in NAMED_SECTIONS.items():
        if name in model.model_fields:
            values |= {f"--{name}": list(known), f"--{name}.name": list(known)}
    names = " ".join(sorted({*values, "--config", "--help"}))
    lines = [f'_soflow_flags[{program}]="{names}"']
    lines += [f'_soflow_values["{program} {name}"]="{" ".join(words)}"' for name, words in values.items() if words]
    function = FUNCTION.replace("STORAGE", str(STORAGE)).replace("SWEEP", SWEEP_FILE).replace("RUN", RUN_FILE)
    return "\n".join([function.strip(), *lines])


def _choices(flag: Flag) -> list[str]:
    if flag.is_bool:
        return ["true", "false", *flag.words]
    return flag.kind.removeprefix("one of ").split(", ") if flag.kind.startswith("one of ") else []
