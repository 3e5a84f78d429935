"""`python -m hf_dami register`: register this environment's `dami` as `hf dami`."""

from __future__ import annotations

import sys

from hf_dami.registration import RegistrationError, register

USAGE = "usage: python -m hf_dami register\n"


def main() -> int:
    """Register; returns 0 on success, 1 on failure, 2 on misuse."""
    if sys.argv[1:] != ["register"]:
        sys.stderr.write(USAGE)
        return 2
    try:
        manifest = register()
    except RegistrationError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stderr.write(f"registered in {manifest.parent}\nnext: hf dami --help\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
