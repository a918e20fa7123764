"""Run all checks of a plug-in: `python -m soflow.testing objective my_lab:MyObjective`."""

from __future__ import annotations

import sys

from soflow import data
from soflow.config import override, parse
from soflow.config_base import ConfigError
from soflow.config_files import read_yaml
from soflow.data.base import DataError
from soflow.testing import KINDS, checks

USAGE = f"usage: python -m soflow.testing {'|'.join(KINDS)} PACKAGE.MODULE:NAME [CONFIG.yaml]"


def main(arguments: list[str]) -> int:
    """Run all checks of one plug-in and print a line for each.

    Returns:
        exit code: 0, or 1 if a check failed, 2 if the arguments are wrong.
    """
    if "--help" in arguments:
        print(f"{__doc__}\n\n{USAGE}")
        return 0
    if len(arguments) < 2 or arguments[0] not in KINDS:
        print(USAGE, file=sys.stderr)
        return 2
    kind, name, *files = arguments
    try:
        values = override(read_yaml(files[0]) if files else {}, {f"{kind}.name": name})
        config = parse(values)
        data.open_source(config.dataset)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # whatever the dataset raises
        print(f"error: {config.dataset.name}: cannot be opened ({type(error).__name__}: {error})", file=sys.stderr)
        return 2
    failed, found = 0, checks(config, kind)
    for check in found:
        try:
            check()
            print(f"passed  {check}")
        except Exception as error:  # whatever the code under test raises
            failed += 1
            reason = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            print(f"FAILED  {check}: {reason}")
    print(f"{name}: {f'{failed} of {len(found)} checks failed' if failed else 'all checks passed'}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
