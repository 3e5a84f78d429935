"""`python -m hf_dami register`: make this environment's `dami` known to `hf` as `hf dami`."""

from __future__ import annotations

import sys

from hf_dami.registration import RegistrationError, register

USAGE = "usage: python -m hf_dami register\n"


def main() -> int:
    """Register; returns 0 done, 1 it cannot be done, 2 misuse."""
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
