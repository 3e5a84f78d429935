"""`PYTHONPATH=tests python -m hub_server [PORT]`: the local Hub as a program, for trying out `dami push`."""

from __future__ import annotations

import sys
import time

from hub_server.running import TOKEN, running


def main() -> None:
    """Run until interrupted; everything pushed is forgotten then."""
    with running(int(sys.argv[1]) if len(sys.argv) > 1 else 8765) as hub:
        lines = (f"export HF_ENDPOINT={hub.url}", f"export HF_TOKEN={TOKEN}", "export HF_HUB_DISABLE_XET=1")
        sys.stdout.write("\n".join((*lines, "# namespaces: acme, ann", "")))
        sys.stdout.flush()
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return


main()
